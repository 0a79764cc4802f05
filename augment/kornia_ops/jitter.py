"""Color jitter: four steps in an order drawn for every sample.

kornia draws one order for a whole call; here it belongs to the sample, like every other draw. For any order the result
is kornia's for that order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_rows, by_sample
from augment.fuse.passes import Instruction, Kind, instruction
from augment.kornia_ops.base import FusedKorniaOp, ranged
from augment.kornia_ops.color import gray, hue_rotated, saturated

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NAMES = ("brightness", "contrast", "saturation", "hue")
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class _Jitter(FusedKorniaOp):
    uniforms = 8

    def __init__(self, module: Any):
        super().__init__(module)
        samplers = [getattr(module._param_generator, f"{name}_sampler") for name in NAMES]
        self.ranges = [(float(sampler.low), float(sampler.high)) for sampler in samplers]
        self.order: tuple[int, ...] = module._fixed_order or (BRIGHTNESS, CONTRAST, SATURATION, HUE)
        self.shuffled = module._fixed_order is None
        self.steps = [step for step in self.order if self.ranges[step] != (NEUTRAL[step],) * 2]
        self.channels = 3 if self.needs_rgb else None

    @property
    def needs_rgb(self) -> bool:
        return HUE in self.steps

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        factors = {f"{name}_factor": ranged(u[:, n], *self.ranges[n]) for n, name in enumerate(NAMES)}
        if self.shuffled:
            return {**factors, "order": u[:, 4:].argsort(dim=1, stable=True)}
        order = torch.stack([torch.full_like(u[:, 0], step, dtype=torch.int64) for step in self.order], 1)
        return {**factors, "order": order}

    def step(self, which: int, images: Tensor, factor: Tensor) -> Tensor:
        """One of the four, with ``factor`` [B, 1, 1, 1]."""
        raise NotImplementedError

    def color(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        images = images.clamp(0, 1)
        return (self.by_groups if by_rows(images) else self.by_selection)(images, params)

    def by_groups(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """At each position, each step on the samples that have it there: least work, but the host reads the order."""
        factors = [by_sample(params[f"{name}_factor"]) for name in NAMES]
        if len(images) == 1:
            for which in params["order"][0].tolist():
                if which in self.steps:
                    images = self.step(which, images, factors[which])
            return images
        for position in params["order"].unbind(1):
            for which in self.steps:
                rows = (position == which).nonzero()[:, 0]
                if len(rows):
                    changed = self.step(which, images.index_select(0, rows), factors[which].index_select(0, rows))
                    images.index_copy_(0, rows, changed)
        return images

    def by_selection(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """At each position every step, then select: more work, but no synchronization with a GPU."""
        for position in params["order"].unbind(1):
            before = images
            for which in self.steps:
                changed = self.step(which, before, by_sample(params[f"{NAMES[which]}_factor"]))
                images = torch.where(by_sample(position == which), changed, images)
        return images

    def by_kornia(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """kornia takes one order per call, so it is called once for each order that was drawn."""
        if not len(images):
            return images
        result = torch.empty_like(images)
        for order in params["order"].unique(dim=0).cpu():
            rows = (params["order"] == order.to(images.device)).all(1).nonzero()[:, 0]
            these = {name: value[rows] for name, value in params.items()}
            result[rows] = super().by_kornia(images[rows], {**these, "order": order})
        return result


class ColorJitter(_Jitter):
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
        """One of the four steps, by torchvision's definition.

        Args:
            which: BRIGHTNESS, CONTRAST, SATURATION or HUE.
            images: [B, C, H, W] in [0, 1].
            factor: [B, 1, 1, 1].

        Returns:
            [B, C, H, W].
        """
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


class ColorJiggle(_Jitter):
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
        """One of the four steps, by kornia's definition.

        Args:
            which: BRIGHTNESS, CONTRAST, SATURATION or HUE.
            images: [B, C, H, W] in [0, 1].
            factor: [B, 1, 1, 1].

        Returns:
            [B, C, H, W].
        """
        if which == HUE:
            return hue_rotated(images, factor).clamp_(0, 1)
        if which == BRIGHTNESS:
            return (images + (factor - 1)).clamp_(0, 1)
        if which == CONTRAST:
            return (images * factor).clamp_(0, 1)
        return saturated(images, factor)


def luma(images: Tensor) -> Tensor:
    """[B, 1, H, W]; one channel is its own luma."""
    return gray(images) if images.shape[1] == 3 else images


def mean_luma(images: Tensor) -> Tensor:
    """[B, 1, 1, 1]: the luma of the mean color, as the luma is linear."""
    means = images.mean((2, 3), keepdim=True)
    return gray(means) if images.shape[1] == 3 else means.mean(1, keepdim=True)
