"""Inference of an image's task, for models with a head for each task."""
