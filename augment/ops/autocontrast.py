"""Contrast stretched to the whole range."""

from __future__ import annotations

from torch import Tensor

from augment.fuse.color import by_sample
from augment.sometimes import Params, Sometimes


class AutoContrast(Sometimes):
    """Stretches every channel to [0, 1]: ``(x − min) / (max − min)``, as PIL's ``ImageOps.autocontrast`` does.

    Args:
        p: probability for a sample.

    A channel of one value stays as it is; kornia's RandomAutoContrast makes it black.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("AutoContrast")
        >>> images = torch.tensor([[[[0.2, 0.4, 0.6]]]])
        >>> op = AutoContrast(p=1.0)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, p: float = 0.5):
        super().__init__(p)

    def statistics(self, images: Tensor, params: Params) -> Params:
        """``low`` and ``width`` [B, C]: every channel's minimum, and its distance from the maximum."""
        low, high = images.amin((2, 3)), images.amax((2, 3))
        flat = high == low
        return {"low": low.masked_fill(flat, 0), "width": (high - low).masked_fill(flat, 1)}

    def color(self, images: Tensor, params: Params) -> Tensor:
        return (images - by_sample(params["low"])) / by_sample(params["width"])
