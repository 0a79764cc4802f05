"""Detectors, one file each; see :mod:`distill.detection.detectors.base` for their interface."""
