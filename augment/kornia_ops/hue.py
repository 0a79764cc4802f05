"""Hue."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.fuse.color import by_sample
from augment.kornia_ops.factor import OneFactor


def hue_rotated(rgb: Tensor, angle: Tensor) -> Tensor:
    """RGB [B, 3, H, W] with its hue rotated by ``angle`` [B, 1, 1, 1] (1 is a full circle); maximum and minimum stay.

    With h the hue in sixths, a channel centered at c (0, 2, 4) is
    ``min + (max - min) · clamp(2 - |h + 6·angle - c|, 0, 1)``, the difference taken around the circle. Equal to
    converting to HSV and back, in few passes, none of which is a selection (those are slow on a CPU).
    """
    r, g, b = rgb.split(1, 1)
    top, bottom = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = top - bottom
    # In sixths times the spread, as if blue were the largest; then green; red last, which wins where they are equal.
    hue = torch.add(r - g, spread, alpha=4)
    hue = torch.add(b - r, spread, alpha=2).lerp_(hue, _below(g, top))
    hue = (g - b).lerp_(hue, _below(r, top))
    # Where all three are equal the spread is 0, and the hue has no effect.
    hue.div_(spread.clamp(min=torch.finfo(rgb.dtype).tiny))
    centers = torch.arange(3, device=rgb.device, dtype=rgb.dtype).view(3, 1, 1) / 3
    away = torch.add(angle - centers, hue, alpha=1 / 6)
    away = away.sub_((away + 0.5).floor_()).abs_()  # round() is slow on a CPU
    return torch.addcmul(bottom, spread, away.mul_(-6).add_(2).clamp_(0, 1))


def _below(channel: Tensor, top: Tensor) -> Tensor:
    """1 where a channel is below the maximum, else 0: a comparison in float arithmetic, which is vectorized."""
    return (top - channel).mul_(1e30).clamp_(max=1)


class RandomHue(OneFactor):
    """Rotate the hue by a fraction of the circle.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandomHue")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandomHue(K.RandomHue((0.5, 0.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.2000, 0.6000, 0.8000])
    """

    wraps = "RandomHue"
    factor = "hue_factor"
    channels = 3

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        return hue_rotated(images.clamp(0, 1), by_sample(params[self.factor])).clamp(0, 1)
