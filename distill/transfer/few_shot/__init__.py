"""Heads for few labeled images, and the episodes by which they are measured. All heads are linear in the features."""
