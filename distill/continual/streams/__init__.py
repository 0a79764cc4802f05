"""Streams: how the data is divided into tasks."""
