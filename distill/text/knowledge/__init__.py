"""Sources of definitions, one file each."""
