"""Penalties on moving away from the weights of earlier tasks, in the coordinates of whatever is trained."""
