"""Saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.kornia_ops.factor import OneFactor


def saturated(rgb: Tensor, factor: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its HSV saturation times ``factor`` [B, 1, 1, 1], at most 1; the maximum stays."""
    top, bottom = rgb.amax(1, keepdim=True), rgb.amin(1, keepdim=True)
    spread = top - bottom
    tiny = torch.finfo(rgb.dtype).tiny
    wanted = top * (spread / (top + 1e-8) * factor).clamp(0, 1)
    return (rgb - bottom) * (wanted / spread.clamp(min=tiny)) + (top - wanted)


class RandomSaturation(OneFactor):
    """The saturation of HSV times a factor.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomSaturation")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomSaturation(K.RandomSaturation((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8000, 0.6000, 0.5000])
    """

    wraps = "RandomSaturation"
    factor = "saturation_factor"
    channels = 3

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return saturated(images.clamp(0, 1), by_sample(params[self.factor])).clamp(0, 1)
