"""Kinds of runs, one file each: a typed config, and the plan, which is the list of stages."""
