"""Solarization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.fuse.passes import Instruction, Kind, instruction
from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class RandomSolarize(FusedKorniaOp):
    """x + addition, and 1 - that where it is at or above a threshold.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomSolarize")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomSolarize(K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2000, 0.4000, 0.4000])
    """

    wraps = "RandomSolarize"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.thresholds, self.additions = limits(sampler.thresholds), limits(sampler.additions)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"thresholds": ranged(u[:, 0], *self.thresholds), "additions": ranged(u[:, 1], *self.additions)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        x = (images.clamp(0, 1) + by_sample(params["additions"])).clamp(0, 1)
        return torch.where(x < by_sample(params["thresholds"]), x, 1 - x)

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        return instruction(Kind.SOLARIZE, params["drawn"], params["thresholds"], params["additions"])
