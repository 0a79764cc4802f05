"""Inversion."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.passes import Instruction, linear
from augment.kornia_ops.base import FusedKorniaOp


class RandomInvert(FusedKorniaOp):
    """max_val - x.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomInvert")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomInvert(K.RandomInvert(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8000, 0.6000, 0.4000])
    """

    wraps = "RandomInvert"

    def __init__(self, module: Any):
        super().__init__(module)
        self.max_val = float(module.flags["max_val"])
        self.keeps_range = self.max_val == 1

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        value = module.flags["max_val"]
        return "max_val by channel" if isinstance(value, Tensor) and value.numel() != 1 else None

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return self.max_val - images

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        drawn = params["drawn"]
        return linear(drawn, shape[1], (-1.0,) * shape[1], (self.max_val,) * shape[1])
