"""A crop of the middle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.crop import Cut, SizeError


class CenterCrop(Cut):
    """The middle of the image.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("CenterCrop")
        >>> images = torch.arange(16.0).view(1, 1, 4, 4) / 15
        >>> op = CenterCrop(K.CenterCrop((2, 2)))
        >>> op.apply(images, op.sample(draws, images.shape)).mul(15)[0, 0]
        tensor([[ 5.,  6.],
                [ 9., 10.]])
    """

    wraps = "CenterCrop"

    def __init__(self, module: Any):
        super().__init__(module)
        self.size = tuple(module.size)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        mode = module.flags["cropping_mode"]
        return None if mode == "slice" else f"cropping_mode={mode!r}"

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        height, width = shape[-2:]
        if height < self.size[0] or width < self.size[1]:
            raise SizeError(
                f"CenterCrop cuts out {self.size[0]} x {self.size[1]} pixels, but every sample of the batch has "
                f"{height} x {width}; pad or resize first"
            )
        zero = u.new_zeros(len(u))
        return self.box(zero + (width - self.size[1]) // 2, zero + (height - self.size[0]) // 2, *self.size[::-1])
