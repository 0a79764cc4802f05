"""What the command line does besides training: one file for a command, or for a few that are alike."""
