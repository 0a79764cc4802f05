"""The color pass: pointwise steps one after another, with the statistics of the whole image that they need.

On a CPU a step is computed for the drawn samples only: they are gathered, changed and written back. Elsewhere it is
computed for all samples and the drawn ones are selected, so that the host never synchronizes with the device and
torch.compile can make one kernel of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Any]


def by_sample(values: Tensor) -> Tensor:
    """[B, …] → [B, …, 1, …], to broadcast against images [B, C, H, W]."""
    return values.view(*values.shape, *(1,) * (4 - values.ndim))


def by_rows(images: Tensor) -> bool:
    """Whether the host may read which samples are drawn, and compute only those."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling()


@lru_cache(maxsize=256)
def _cached(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # Cached, because making a tensor on a GPU from Python numbers synchronizes with the GPU.
    return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


def per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    """[C, 1, 1] on the device of ``like``."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1)
    return _cached(tuple(values), like.device, like.dtype)


def colored(user: Any, images: Tensor, params: Params) -> Tensor:
    """Apply one ``color`` operation to all samples, drawn or not.

    Args:
        user: the operation.
        images: [B, C, H, W].
        params: its parameters; ``drawn`` [B] bool marks the samples that change.

    Returns:
        [B, C, H, W].
    """
    if hasattr(user, "statistics"):
        params = {**params, **user.statistics(images, params)}
    return user.color(images, params)


def where_drawn(change: Callable[[Tensor, Params], Tensor], images: Tensor, params: Params) -> Tensor:
    """Change the drawn samples and leave the others as they are.

    Args:
        change: computes the changed images from images and parameters.
        images: [B, C, H, W].
        params: with ``drawn`` [B] bool; without it, all samples change.

    Returns:
        [B, C, H, W].
    """
    drawn = params.get("drawn")
    if drawn is None:
        return change(images, params)
    if not by_rows(images):
        return torch.where(by_sample(drawn), change(images, params), images)
    if not drawn.any():
        return images
    if drawn.all():
        return change(images, params)
    rows = drawn.nonzero()[:, 0]
    batch = len(images)
    these = {name: value[rows] if batch_first(value, batch) else value for name, value in params.items()}
    return images.index_copy(0, rows, change(images[rows], these))


def batch_first(value: Any, batch: int) -> bool:
    """Whether a parameter has a row per sample."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == batch


def color(user: Any, images: Tensor, params: Params) -> Tensor:
    """Apply one ``color`` operation to the drawn samples.

    Args:
        user: the operation.
        images: [B, C, H, W].
        params: its parameters; ``drawn`` [B] bool marks the samples that change.

    Returns:
        [B, C, H, W].
    """
    return where_drawn(lambda some, some_params: colored(user, some, some_params), images, params)
