"""A crop of random area and aspect ratio, resized."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.base import limits, ranged
from augment.kornia_ops.crop import Cut, unfit_resampling


class RandomResizedCrop(Cut):
    """A box of random area and aspect ratio, resized: the first of ten tries that fits into the image, else the largest
    box within the aspect ratios; at a random position.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomResizedCrop")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = RandomResizedCrop(K.RandomResizedCrop((2, 2), scale=(0.3, 1.0)))
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.1250, 0.2500],
                [0.5000, 0.6250]])
    """

    wraps = "RandomResizedCrop"
    uniforms = 22
    tries = 10

    def __init__(self, module: Any):
        super().__init__(module)
        generator = module._param_generator
        self.size = tuple(module.flags["size"])
        self.scale, self.ratio = limits(generator.scale), limits(generator.ratio)

    @classmethod
    def unfit(cls, module: Any) -> str | None:
        flags = module.flags
        if flags["cropping_mode"] != "slice":
            return f"cropping_mode={flags['cropping_mode']!r}"
        return unfit_resampling(flags) or (None if flags["align_corners"] else "align_corners=False")

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        H, W = shape[-2:]
        area = ranged(u[:, : self.tries], *self.scale) * (H * W)
        ratio = ranged(u[:, self.tries : -2], *(math.log(end) for end in self.ratio)).exp()
        width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits = (width >= 1) & (width <= W) & (height >= 1) & (height <= H)
        # The first that fits: the largest of (tries, …, 1) where it does; 0 where none does.
        rank = torch.arange(self.tries, 0, -1, device=u.device)
        best, chosen = (fits * rank).max(1)
        tall, wide = _fallback(H, W, *self.ratio)
        width = torch.where(best > 0, width.gather(1, chosen[:, None])[:, 0], float(wide))
        height = torch.where(best > 0, height.gather(1, chosen[:, None])[:, 0], float(tall))
        left, top = (u[:, -2] * (W - width + 1)).floor(), (u[:, -1] * (H - height + 1)).floor()
        return self.box(left, top, width, height)


def _fallback(H: int, W: int, low: float, high: float) -> tuple[int, int]:
    """The largest box within the ratios: (height, width)."""
    ratio = W / H
    if ratio < low:
        return min(max(round(W / low), 1), H), W
    if ratio > high:
        return H, min(max(round(H * high), 1), W)
    return H, W
