"""Brightness."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.fuse.passes import Instruction, linear
from augment.kornia_ops.factor import OneFactor


class RandomBrightness(OneFactor):
    """x + (factor - 1).

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomBrightness")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomBrightness(K.RandomBrightness((1.2, 1.2), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4000, 0.6000, 0.8000])
    """

    wraps = "RandomBrightness"
    factor = "brightness_factor"

    def __init__(self, module: Any):
        super().__init__(module)
        self.keeps_range = self.clip = module.clip_output

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        moved = (images.clamp(0, 1) if self.clip else images) + by_sample(params[self.factor] - 1)
        return moved.clamp(0, 1) if self.clip else moved

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        factor = params[self.factor]
        return linear(params["drawn"], shape[1], torch.ones_like(factor), factor - 1, (self.clip, self.clip))
