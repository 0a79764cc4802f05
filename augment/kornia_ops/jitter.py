"""Jitter, the base of color jitter: four steps in an order drawn for every sample.

kornia draws one order for a whole call; here it belongs to the sample, like every other draw. For any order the result
is kornia's for that order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.fuse.color import by_rows, by_sample
from augment.kornia_ops.base import FusedKorniaOp, ranged
from augment.kornia_ops.grayscale import gray

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NAMES = ("brightness", "contrast", "saturation", "hue")
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class Jitter(FusedKorniaOp):
    """Base of ColorJitter and ColorJiggle, which define :meth:`step`."""

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
        """One of the four steps.

        Args:
            which: BRIGHTNESS, CONTRAST, SATURATION or HUE.
            images: [B, C, H, W] in [0, 1].
            factor: [B, 1, 1, 1].

        Returns:
            [B, C, H, W].
        """
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


def luma(images: Tensor) -> Tensor:
    """[B, 1, H, W]; one channel is its own luma."""
    return gray(images) if images.shape[1] == 3 else images


def mean_luma(images: Tensor) -> Tensor:
    """[B, 1, 1, 1]: the luma of the mean color, as the luma is linear."""
    means = images.mean((2, 3), keepdim=True)
    return gray(means) if images.shape[1] == 3 else means.mean(1, keepdim=True)
