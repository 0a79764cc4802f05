"""The public Python API; ``import distill`` loads its names on first use."""
