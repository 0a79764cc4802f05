"""The colour pass: pointwise steps one after another, with what they need to know of the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def by_sample(values: Tensor) -> Tensor:
    """[B, …] → [B, …, 1, …], to broadcast against images [B, C, H, W]."""
    return values.view(*values.shape, *(1,) * (4 - values.ndim))


def colour(images: Tensor, steps: Sequence[tuple[Any, dict[str, Any]]]) -> Tensor:
    """Floats [B, C, H, W] through ``steps``: operations with ``colour``, each with its parameters."""
    for user, params in steps:
        if hasattr(user, "statistics"):
            params = {**params, **user.statistics(images, params)}
        changed = user.colour(images, params)
        drawn = params.get("drawn")
        images = changed if drawn is None else torch.where(by_sample(drawn), changed, images)
    return images


def colour_alone(user: Any, images: Tensor, params: dict[str, Any]) -> Tensor:
    """One operation by itself."""
    return colour(images, [(user, params)])
