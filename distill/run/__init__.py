"""A run, from its config to its report: what happens in it in order, and the parts that train something."""
