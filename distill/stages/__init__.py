"""The stages that runs are made of, one file each; see :mod:`distill.run.stage` for their contract."""
