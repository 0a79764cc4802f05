"""Flips. The frame stays, so a flip can be done before a color or a blur that it follows."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.fuse.geometry import axis_map
from augment.kornia_ops.base import FusedKorniaOp


class RandomHorizontalFlip(FusedKorniaOp):
    """x → W - 1 - x."""

    wraps = "RandomHorizontalFlip"
    axis_aligned = stays_inside = True
    mirror = 3

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones = torch.ones_like(params["drawn"], dtype=torch.float64)
        return axis_map(-ones, (shape[-1] - 1) * ones, ones, 0 * ones)

    affine = pullback  # its own inverse


class RandomVerticalFlip(FusedKorniaOp):
    """y → H - 1 - y."""

    wraps = "RandomVerticalFlip"
    axis_aligned = stays_inside = True
    mirror = 2

    def pullback(self, params: dict[str, Tensor], shape: torch.Size) -> Tensor:
        ones = torch.ones_like(params["drawn"], dtype=torch.float64)
        return axis_map(ones, 0 * ones, -ones, (shape[-2] - 1) * ones)

    affine = pullback
