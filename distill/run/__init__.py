"""Runs: the contract of stages, the runner of plans, and functions that several stages use."""
