"""Strategies: how a student begins a task, and what is kept of it at the end."""
