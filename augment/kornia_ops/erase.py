"""Erasing: a box per sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class RandomErasing(FusedKorniaOp):
    """A box of random area and aspect ratio (height over width) at a random position is filled with one value.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomErasing")
        >>> images = torch.ones(1, 1, 4, 4)
        >>> op = RandomErasing(K.RandomErasing(scale=(0.2, 0.4), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[1., 1., 0., 1.],
                [1., 1., 0., 1.],
                [1., 1., 0., 1.],
                [1., 1., 0., 1.]])
    """

    wraps = "RandomErasing"
    uniforms = 6

    def __init__(self, module: Any):
        super().__init__(module)
        self.scale, self.ratio, self.value = limits(module.scale), limits(module.ratio), float(module.value)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        H, W = shape[-2:]
        area = ranged(u[:, 0], *self.scale) * (H * W)
        low, high = self.ratio
        if low < 1 < high:  # upright and lying boxes with equal probability
            ratio = torch.where(u[:, 1].round() > 0, ranged(u[:, 2], low, 1.0), ranged(u[:, 3], 1.0, high))
        else:
            ratio = ranged(u[:, 2], low, high)
        height = (area * ratio).sqrt().round().clamp(1, H)
        width = (area / ratio).sqrt().round().clamp(1, W)
        return {
            "xs": (u[:, 4] * (W - width + 1)).floor(),
            "ys": (u[:, 5] * (H - height + 1)).floor(),
            "widths": width,
            "heights": height,
            "values": torch.full_like(width, self.value),
        }

    def erase(self, params: dict[str, Tensor], shape: torch.Size) -> tuple[Tensor, Tensor]:
        return torch.stack([params[name] for name in ("ys", "xs", "heights", "widths")], 1), params["values"]
