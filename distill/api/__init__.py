"""What ``import distill`` offers to people who write Python; ``distill`` itself loads it name by name."""
