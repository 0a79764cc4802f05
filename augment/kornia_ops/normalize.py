"""Normalization by channel, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from augment.fuse.color import per_channel
from augment.kornia_ops.base import FusedKorniaOp


class Normalize(FusedKorniaOp):
    """(x - mean) / std per channel.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Normalize")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = Normalize(K.Normalize(mean=torch.tensor([0.5]), std=torch.tensor([0.2])))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([ 1.5000, -0.5000, -1.5000])
    """

    wraps = "Normalize"
    keeps_range = False

    def __init__(self, module: Any):
        super().__init__(module)
        self.mean, self.std = (tuple(module.flags[name].flatten().tolist()) for name in ("mean", "std"))

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return (images - per_channel(self.mean, images)) / per_channel(self.std, images)


class Denormalize(Normalize):
    """x · std + mean per channel.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Denormalize")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = Denormalize(K.Denormalize(mean=torch.tensor([0.5]), std=torch.tensor([0.2])))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.6600, 0.5800, 0.5400])
    """

    wraps = "Denormalize"

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return images * per_channel(self.std, images) + per_channel(self.mean, images)
