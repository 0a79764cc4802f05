"""Histogram equalization."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.sometimes import Params, PerSampleChange

LEVELS = 256


class Equalize(PerSampleChange):
    """Spreads every channel's 256 levels so that its histogram becomes flat, as PIL's ``ImageOps.equalize`` does.

    Args:
        p: probability for a sample.

    kornia's RandomEqualize interpolates between levels and differs from PIL by a few of them.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Equalize")
        >>> images = torch.linspace(0, 0.5, 300).view(1, 1, 15, 20)
        >>> op = Equalize(p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).max()
        tensor(1.)
    """

    def __init__(self, p: float = 0.5):
        super().__init__(p)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        return {}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return equalize(images)


def equalize(images: Tensor) -> Tensor:
    """Images [B, C, H, W] in [0, 1], rounded to 256 levels, with every channel's histogram made flat.

    With h the histogram and s = (pixels − h[highest level that occurs]) // 255, level k becomes
    ``(s // 2 + Σ_{j<k} h[j]) // s``; a channel with s = 0 stays as it is.
    """
    level = images.flatten(2).mul(LEVELS - 1).round_().clamp_(0, LEVELS - 1).long()
    count = level.new_zeros(*level.shape[:2], LEVELS).scatter_add_(2, level, level.new_ones(1).expand_as(level))
    below = count.cumsum(2) - count
    # Σ of all levels but the highest is the largest ``below`` at a level that occurs.
    step = (below * (count > 0)).amax(2, keepdim=True).div_(LEVELS - 1, rounding_mode="floor")
    table = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(0, LEVELS - 1)
    flat = table.to(images.dtype).mul_(1 / (LEVELS - 1)).gather(2, level)
    return torch.where(step > 0, flat, images.flatten(2)).view_as(images)
