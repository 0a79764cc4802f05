"""Color jitter with kornia's own definitions of the steps."""

from __future__ import annotations

from torch import Tensor

from augment.kornia_ops.hue import hue_rotated
from augment.kornia_ops.jitter import BRIGHTNESS, CONTRAST, HUE, SATURATION, Jitter
from augment.kornia_ops.saturation import saturated


class ColorJiggle(Jitter):
    """Brightness x + (f - 1), contrast x·f, the saturation of HSV, and hue.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("ColorJiggle")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = ColorJiggle(K.ColorJiggle(brightness=(1.5, 1.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([1.0000, 0.9000, 0.7000])
    """

    wraps = "ColorJiggle"

    @property
    def needs_rgb(self) -> bool:
        return HUE in self.steps or SATURATION in self.steps

    def step(self, which: int, images: Tensor, factor: Tensor) -> Tensor:
        """By kornia's definition; arguments as in :meth:`Jitter.step`."""
        if which == HUE:
            return hue_rotated(images, factor).clamp_(0, 1)
        if which == BRIGHTNESS:
            return (images + (factor - 1)).clamp_(0, 1)
        if which == CONTRAST:
            return (images * factor).clamp_(0, 1)
        return saturated(images, factor)
