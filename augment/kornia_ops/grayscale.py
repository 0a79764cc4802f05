"""Grayscale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.passes import Instruction, Kind, instruction
from augment.kornia_ops.base import FusedKorniaOp

LUMA = (0.299, 0.587, 0.114)


def gray(images: Tensor, weights: tuple[float, ...] = LUMA) -> Tensor:
    """[B, C, H, W] → [B, 1, H, W], the weighted sum of the channels."""
    total = images[:, :1] * weights[0]
    for channel in range(1, len(weights)):
        total = torch.add(total, images[:, channel : channel + 1], alpha=weights[channel])
    return total


class RandomGrayscale(FusedKorniaOp):
    """The luma in every channel; with other than three channels their mean.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomGrayscale")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomGrayscale(K.RandomGrayscale(p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.4968, 0.4968, 0.4968])
    """

    wraps = "RandomGrayscale"

    def __init__(self, module: Any):
        super().__init__(module)
        weights = module.rgb_weights
        self.weights = None if weights is None else tuple(weights.tolist())

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return gray(images, self._weights(images.shape[1])).expand_as(images)

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        return instruction(Kind.GRAY, params["drawn"], self._weights(shape[1]))

    def _weights(self, channels: int) -> tuple[float, ...]:
        weights = self.weights or (LUMA if channels == 3 else (1 / channels,) * channels)
        if len(weights) != channels:
            raise ValueError(f"RandomGrayscale has rgb_weights for {len(weights)} channels; images have {channels}")
        return weights
