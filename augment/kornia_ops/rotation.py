"""Rotation about the middle."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augment.fuse.geometry import matrix
from augment.kornia_ops.base import limits, ranged
from augment.kornia_ops.warp import Warp, middle


def rotation(degrees: Tensor, center: tuple[float, float], scale: Tensor | None = None) -> Tensor:
    """Rotation and scaling about a point.

    Args:
        degrees: [B], counterclockwise in the displayed image.
        center: (x, y) in pixels.
        scale: [B, 2] along x and y, applied first; None: 1.

    Returns:
        [B, 3, 3], source → destination.
    """
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    across, down = (torch.ones_like(cos),) * 2 if scale is None else scale.unbind(1)
    a, b, d, e = cos * across, sin * down, -sin * across, cos * down
    x, y = center
    return matrix(a, b, x - a * x - b * y, d, e, y - d * x - e * y)


class RandomRotation(Warp):
    """Rotation by an angle in degrees about the middle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomRotation")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomRotation(K.RandomRotation((90.0, 90.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.2500, 0.6250, 1.0000],
                [0.1250, 0.5000, 0.8750],
                [0.0000, 0.3750, 0.7500]])
    """

    wraps = "RandomRotation"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        self.degrees = limits(module._param_generator.degrees)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"degrees": ranged(u[:, 0], *self.degrees)}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return rotation(params["degrees"], middle(shape))


class RandomRotation90(Warp):
    """Rotation by a multiple of 90 degrees about the middle; the frame stays.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomRotation90")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomRotation90(K.RandomRotation90(times=(1, 1), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.2500, 0.6250, 1.0000],
                [0.1250, 0.5000, 0.8750],
                [0.0000, 0.3750, 0.7500]])
    """

    wraps = "RandomRotation90"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        self.times = limits(module._param_generator.times)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"times": ranged(u[:, 0], *self.times)}

    def affine(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        return rotation(90 * params["times"].round(), middle(shape))
