"""Contrast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.fuse.passes import Instruction, linear
from augment.kornia_ops.factor import OneFactor


class RandomContrast(OneFactor):
    """x · factor.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomContrast")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomContrast(K.RandomContrast((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.1000, 0.2000, 0.3000])
    """

    wraps = "RandomContrast"
    factor = "contrast_factor"

    def __init__(self, module: Any):
        super().__init__(module)
        self.keeps_range = self.clip = module.clip_output

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        scaled = (images.clamp(0, 1) if self.clip else images) * by_sample(params[self.factor])
        return scaled.clamp(0, 1) if self.clip else scaled

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        factor = params[self.factor]
        return linear(params["drawn"], shape[1], factor, torch.zeros_like(factor), (self.clip, self.clip))
