"""One network's view: uint8 or float images → floats in [0, 1] → operations → the network's size → normalised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from augment.draws import Draws
from augment.recipe import Op, built
from augment.views import InputSpec


class Chain(nn.Module):
    """An ordered list of operations for one input size.

    Args:
        recipe: the operations by name, or as objects of any shape that a name can have.
        size: (height, width) of what comes out, whatever the operations do.

    Draws are keyed by an operation's name and how many of that name came before it, not by its place: adding a colour
    operation to a chain changes nothing about its crop.
    """

    def __init__(self, recipe: Sequence[Op | Callable[..., Any]], size: tuple[int, int]):
        super().__init__()
        self.size = size
        named = [built(item, size) for item in recipe]
        self.operations = nn.ModuleList(operation for _, operation in named)
        seen: Counter[str] = Counter()
        self.keys: list[str] = []
        for name, _ in named:
            self.keys.append(f"{name}#{seen[name]}")
            seen[name] += 1

    def forward(self, images: Tensor, draws: Draws, geometry: Draws | None = None) -> Tensor:
        """Images [B, 3, H, W] → floats [B, 3, *size] in [0, 1], not yet normalised.

        Args:
            images: uint8, or floats in [0, 1].
            draws: for this view of these samples.
            geometry: for the geometric operations, where another view shares them; default ``draws``.
        """
        x = to_unit(images)
        for key, operation in zip(self.keys, self.operations):
            source = geometry if geometry is not None and operation.geometric else draws
            x = operation(x, source.op(key))
        x = resized(x, self.size)
        # Noise, bicubic resampling and users' operations may leave [0, 1].
        return x.clamp(0, 1) if self.operations else x


def to_unit(images: Tensor) -> Tensor:
    """Floats in [0, 1] from uint8; float images are taken as being in [0, 1] already."""
    if images.dtype == torch.uint8:
        return images.float().mul_(1 / 255)
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8, or floats in [0, 1], not {images.dtype}")
    return images.float()


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with antialiasing, as PIL does it; the same tensor when the size is right."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, because making a tensor on a GPU from numbers waits for the GPU.
    return torch.tensor(values, device=device).view(-1, 1, 1)


def normalised(images: Tensor, spec: InputSpec) -> Tensor:
    """``(x - mean) / std`` per channel, for x in [0, 1]."""
    return (images - _per_channel(tuple(spec.mean), images.device)).div_(_per_channel(tuple(spec.std), images.device))


@torch.no_grad()
def eval_view(images: Tensor, spec: InputSpec) -> Tensor:
    """What a network sees in validation and test: resized and normalised, nothing drawn.

    Args:
        images: [B, 3, H, W], uint8 or floats in [0, 1].
    """
    with torch.autocast(images.device.type, enabled=False):
        return normalised(resized(to_unit(images), spec.size), spec)
