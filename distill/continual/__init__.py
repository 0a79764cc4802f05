"""Continual learning: metrics of a stream of tasks, heads from sums, task inference, memory, and regularizers."""
