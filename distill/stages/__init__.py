"""The stages of runs, one file each; see :mod:`distill.run.stage` for their interface."""
