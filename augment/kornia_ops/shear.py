"""Shear about the middle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import matrix
from augment.kornia_ops.base import limits, ranged
from augment.kornia_ops.warp import Warp, middle


def shear(degrees_x: Tensor, degrees_y: Tensor, center: tuple[float, float]) -> Tensor:
    """Shear about a point, as kornia defines it.

    Args:
        degrees_x: [B], along x.
        degrees_y: [B], along y, applied second.
        center: (x, y) in pixels, which stays in place.

    Returns:
        [B, 3, 3], source → destination.
    """
    u, v = (degrees_x * (math.pi / 180)).tan(), (degrees_y * (math.pi / 180)).tan()
    x, y = center
    return matrix(torch.ones_like(u), -u, u * y, -v, 1 + u * v, v * (x - u * y))


class RandomShear(Warp):
    """Shear by angles in degrees about the middle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomShear")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomShear(K.RandomShear((45.0, 45.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.0000, 0.1250],
                [0.3750, 0.5000, 0.6250],
                [0.8750, 1.0000, 0.0000]])
    """

    wraps = "RandomShear"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.across, self.down = limits(sampler.shear_x), limits(sampler.shear_y)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        x, y = middle(shape)
        center = torch.stack([torch.full_like(u[:, 0], x), torch.full_like(u[:, 0], y)], 1)
        return {"shear_x": ranged(u[:, 0], *self.across), "shear_y": ranged(u[:, 1], *self.down), "center": center}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return shear(params["shear_x"], params["shear_y"], middle(shape))
