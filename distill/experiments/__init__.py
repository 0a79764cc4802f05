"""Kinds of runs, one file each: a typed config, and the plan, which is a list of stages."""
