"""Flips. They keep the frame, so a chain may move one ahead of a color or blur operation."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.fuse.geometry import axis_map
from augment.kornia_ops.base import FusedKorniaOp


class RandomHorizontalFlip(FusedKorniaOp):
    """x → W - 1 - x.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomHorizontalFlip")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomHorizontalFlip(K.RandomHorizontalFlip(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.6000, 0.4000, 0.2000])
    """

    wraps = "RandomHorizontalFlip"
    axis_aligned = stays_inside = True
    mirror = 3

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones = torch.ones_like(params["drawn"], dtype=torch.float64)
        return axis_map(-ones, (shape[-1] - 1) * ones, ones, 0 * ones)

    affine = pullback  # its own inverse


class RandomVerticalFlip(FusedKorniaOp):
    """y → H - 1 - y.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomVerticalFlip")
        >>> images = torch.tensor([[[[0.2], [0.4], [0.6]]]])
        >>> op = RandomVerticalFlip(K.RandomVerticalFlip(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.6000, 0.4000, 0.2000])
    """

    wraps = "RandomVerticalFlip"
    axis_aligned = stays_inside = True
    mirror = 2

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones = torch.ones_like(params["drawn"], dtype=torch.float64)
        return axis_map(ones, 0 * ones, -ones, (shape[-2] - 1) * ones)

    affine = pullback
