"""Posterization."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.kornia_ops.base import FusedKorniaOp, ranged


class RandomPosterize(FusedKorniaOp):
    """Keep the upper bits of 8: with 0 bits the result is 0, with 8 it is x.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomPosterize")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = RandomPosterize(K.RandomPosterize((1, 1), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.0000, 0.0000, 0.5020])
    """

    wraps = "RandomPosterize"
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        sampler = module._param_generator.bit_sampler
        self.bits = float(sampler.low), float(sampler.high)

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {"bits_factor": ranged(u[:, 0], *self.bits).round().int()}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        bits = by_sample(params["bits_factor"])
        x = images.clamp(0, 1)
        step = torch.exp2(8.0 - bits)
        # Dividing and multiplying by 255 is kornia's way; without it some bytes come out one level higher.
        kept = ((x * 255).floor() / step / 255 * 255).floor() * step / 255
        return torch.where(bits == 8, x, torch.where(bits == 0, 0.0, kept))
