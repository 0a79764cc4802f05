"""Gamma correction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class RandomGamma(FusedKorniaOp):
    """gain · x^gamma.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomGamma")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomGamma(K.RandomGamma((2.0, 2.0), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.0400, 0.1600, 0.3600])
    """

    wraps = "RandomGamma"
    uniforms = 2

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator
        self.gamma, self.gain = limits(sampler.gamma_factor), limits(sampler.gain_factor)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"gamma_factor": ranged(u[:, 0], *self.gamma), "gain_factor": ranged(u[:, 1], *self.gain)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        powered = images.clamp(0, 1).pow(by_sample(params["gamma_factor"]))
        return (powered * by_sample(params["gain_factor"])).clamp(0, 1)
