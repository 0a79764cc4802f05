"""Sharpness."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.sometimes import Params, PerSampleChange, Range, between, limits


class Sharpness(PerSampleChange):
    """Moves an image away from, or towards, a smoothed copy of itself, as PIL's ``ImageEnhance.Sharpness`` does.

    Args:
        factor: 0 is the smoothed copy, 1 the image, 2 twice as sharp; a number, or [lowest, highest] to draw between.
        p: probability for a sample.

    The results are those of kornia's RandomSharpness, several times faster.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Sharpness")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3).div(8).square()
        >>> op = Sharpness(factor=2.0, p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.0156, 0.0625],
                [0.1406, 0.1779, 0.3906],
                [0.5625, 0.7656, 1.0000]])
    """

    def __init__(self, factor: Range = (0.1, 1.9), p: float = 0.5):
        super().__init__(p)
        self.factor = limits("factor", factor, 0)

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        return {"factor": between(draws, 1, self.factor)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return sharpness(images, params["factor"])


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """``smooth + factor · (x − smooth)``, clipped to [0, 1]; the outermost pixels stay as they are.

    Args:
        images: [B, C, H, W] in [0, 1]; below 3 pixels a side nothing changes.
        factor: [B].

    ``smooth`` is the mean over 3 × 3 pixels with the middle one counted five times.
    """
    result = images.clone()
    if min(images.shape[2:]) < 3:
        return result
    inner = result[..., 1:-1, 1:-1]
    rows = (images[..., :-2, :] + images[..., 2:, :]).add_(images[..., 1:-1, :])
    smooth = (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1]).add_(inner, alpha=4).mul_(1 / 13)
    inner.sub_(smooth).mul_(by_sample(factor)).add_(smooth)
    return result.clamp_(0, 1)
