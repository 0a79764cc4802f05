"""The commands beside training: one file for each command, or for a few similar ones."""
