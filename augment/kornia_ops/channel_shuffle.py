"""Channels permuted."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.kornia_ops.base import FusedKorniaOp


class RandomChannelShuffle(FusedKorniaOp):
    """The channels in a random order.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomChannelShuffle")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomChannelShuffle(K.RandomChannelShuffle(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4000, 0.2000, 0.8000])
    """

    wraps = "RandomChannelShuffle"
    uniforms = 8

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        if shape[1] > self.uniforms:
            raise ValueError(f"RandomChannelShuffle is for at most {self.uniforms} channels; images have {shape[1]}")
        return {"channels": u[:, : shape[1]].argsort(dim=1, stable=True)}

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        order = params["channels"].view(*images.shape[:2], 1, 1)
        return images.gather(1, order.expand_as(images))
