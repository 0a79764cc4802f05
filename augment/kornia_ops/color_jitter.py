"""Color jitter as torchvision defines it."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.fuse.color import by_rows, by_sample
from augment.fuse.passes import Instruction, Kind, instruction
from augment.kornia_ops.hue import hue_rotated
from augment.kornia_ops.jitter import BRIGHTNESS, CONTRAST, HUE, NAMES, SATURATION, Jitter, luma, mean_luma


class ColorJitter(Jitter):
    """Brightness x·f, contrast towards the image's mean luma, saturation towards each pixel's luma, and hue: as
    torchvision defines them. Three of them are ``f·x + (1 - f)·r`` with another r, clamped.

    Example:
        >>> import augment, torch
        >>> from kornia import augmentation as K
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("ColorJitter")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = ColorJitter(K.ColorJitter(brightness=(1.5, 1.5), p=1.0))
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([1.0000, 0.6000, 0.3000])
    """

    wraps = "ColorJitter"

    def step(self, which: int, images: Tensor, factor: Tensor) -> Tensor:
        """By torchvision's definition; arguments as in :meth:`Jitter.step`."""
        if which == HUE:
            return hue_rotated(images, factor)
        if which == BRIGHTNESS:
            return (images * factor).clamp_(0, 1)
        if which == CONTRAST:
            return (images * factor).add_(mean_luma(images) * (1 - factor)).clamp_(0, 1)
        return torch.lerp(luma(images), images, factor).clamp_(0, 1)

    def instruction(self, params: dict[str, Tensor], shape: torch.Size) -> Instruction:
        order = params["order"]
        factors = torch.stack([params[f"{name}_factor"] for name in NAMES], 1).gather(1, order)
        if len(self.steps) < len(NAMES):
            order = torch.where(torch.isin(order, torch.tensor(self.steps)), order, -1)  # -1: no step
        pairs = torch.stack([order, factors], 2).flatten(1)
        return instruction(Kind.JITTER, params["drawn"], torch.full_like(order[:, 0], order.shape[1]), pairs)

    def by_selection(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Three blends before the hue and three after, of which each sample uses three: hue is computed once."""
        return self._blended(images, params, len(self.order))

    def statistics(self, images: Tensor, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """The mean luma that contrast uses: of the images after the steps before it."""
        if CONTRAST not in self.steps or by_rows(images):
            return {}
        images = images.clamp(0, 1)
        if self.steps != [CONTRAST]:
            images = self._blended(images, params, self._position_of(CONTRAST, params["order"]))
        return {"mean": mean_luma(images).flatten()}

    def _position_of(self, which: int, order: Tensor) -> Tensor:
        """[B]: the position of a step in the order; ``order.shape[1]`` where it does not occur."""
        never = order.shape[1]
        positions = torch.arange(never, device=order.device)
        return torch.where(order == which, positions, never).amin(1)

    def _blended(self, images: Tensor, params: dict[str, Tensor], end: Tensor | int) -> Tensor:
        """The steps at positions before ``end``; contrast needs ``params["mean"]``."""
        order = params["order"]
        last = order.shape[1]
        factors = torch.stack([params[f"{name}_factor"] for name in NAMES], 1).gather(1, order)

        def blend(images: Tensor, position: int, active: Tensor | bool) -> Tensor:
            kind = order[:, position]
            factor = by_sample(torch.where((kind != HUE) & active & (position < end), factors[:, position], 1.0))
            target = torch.zeros_like(factor)
            if "mean" in params:
                target = by_sample(torch.where(kind == CONTRAST, params["mean"], 0.0))
            if SATURATION in self.steps:
                target = torch.where(by_sample(kind == SATURATION), luma(images), target)
            return (factor * images + (1 - factor) * target).clamp(0, 1)

        if HUE not in self.steps:
            for position in range(last):
                images = blend(images, position, True)
            return images
        place = self._position_of(HUE, order)
        for position in range(last - 1):
            images = blend(images, position, position < place)
        images = hue_rotated(images, by_sample(torch.where(place < end, params["hue_factor"], 0.0)))
        for position in range(1, last):
            images = blend(images, position, position > place)
        return images
