"""What RandAugment, TrivialAugment, AutoAugment and AugMix are made of: steps, each sample its own, in its own order.

A step is a number in ``STEPS`` and a magnitude in its own unit; columns of them, one per turn, are an operation's
parameters. A turn computes each kind of step for those samples that drew it (see :func:`augment.sometimes.change_`).

The definitions are torchvision's for uint8 images, which are PIL's up to rounding. Here images are not rounded to 256
levels between the steps, except by posterize and equalize, which are about levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from augment.draws import Draws
from augment.fuse.color import by_sample
from augment.operation import Sampled
from augment.ops.autocontrast import AutoContrast
from augment.ops.equalize import equalize
from augment.ops.sharpness import sharpness
from augment.sometimes import Params, change_

Interpolation = Literal["nearest", "bilinear"]

STEPS = (
    "Identity",
    "ShearX",  # magnitude: shift in pixels per pixel
    "ShearY",
    "TranslateX",  # pixels, cut to whole ones
    "TranslateY",
    "Rotate",  # degrees, against the clock
    "Brightness",  # the factor, less 1
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",  # bits that stay
    "Solarize",  # values from here on are inverted
    "AutoContrast",
    "Equalize",
    "Invert",
)
_GEOMETRY = range(1, 6)


@dataclass(frozen=True)
class Span:
    """A step and what its magnitude is at levels 0 and 1. ``signed``: either sign, with equal chance."""

    step: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    relative: bool = False
    """The magnitude is a part of the image's width (steps of name X) or height (Y)."""


Space = tuple[Span, ...]


@lru_cache(maxsize=32)
def _table(space: Space, device: torch.device) -> tuple[Tensor, ...]:
    # Kept, because making a tensor on a GPU from numbers waits for the GPU.
    along_x = [span.relative and span.step.endswith("X") for span in space]
    along_y = [span.relative and span.step.endswith("Y") for span in space]
    steps = torch.tensor([STEPS.index(span.step) for span in space], device=device)
    numbers = [(span.low, span.high, span.signed) for span in space]
    return steps, torch.tensor(numbers, device=device), torch.tensor([along_x, along_y], device=device)


def magnitudes(space: Space, choice: Tensor, level: Tensor, negative: Tensor, shape: torch.Size) -> Params:
    """The parameters of steps for images of ``shape`` [B, C, H, W].

    Args:
        space: what there is to choose from.
        choice: [B, n] int64, numbers of ``space``.
        level: [B, n], 0 … 1.
        negative: [B, n] bool, whether a magnitude of either sign is negative.

    Returns:
        ``step`` [B, n] int64, numbers of ``STEPS``, and ``magnitude`` [B, n].
    """
    steps, numbers, (along_x, along_y) = _table(space, choice.device)
    low, high, signed = numbers[choice].unbind(-1)
    step = steps[choice]
    size = torch.where(along_x[choice], shape[3], torch.where(along_y[choice], shape[2], 1))
    magnitude = (low + (high - low) * level) * size
    return {"step": step, "magnitude": torch.where(negative & signed.bool(), -magnitude, magnitude)}


class InSteps(Sampled):
    """An operation whose parameters are steps.

    It is geometric, though its steps are not all: where views share their geometry, they share all of these.
    """

    geometric = True

    def __init__(self, interpolation: Interpolation, fill: float):
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation is one of {', '.join(get_args(Interpolation))}, not {interpolation!r}")
        if not 0 <= fill <= 1:
            raise ValueError(f"fill is a value in 0 … 1, not {fill}")
        self.interpolation, self.fill = interpolation, fill
        self._move = _Move(interpolation)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        images = images.clone()
        for position in range(params["step"].shape[1]):
            self.turn_(images, params["step"][:, position], params["magnitude"][:, position])
        return images

    def turn_(self, images: Tensor, step: Tensor, magnitude: Tensor) -> None:
        """One step for every sample, in place."""
        params = {"step": step, "magnitude": magnitude}
        change_(images, (step >= _GEOMETRY.start) & (step < _GEOMETRY.stop), self.moved, params)
        for name, change in _CHANGES.items():
            change_(images, step == STEPS.index(name), change, params)

    def moved(self, images: Tensor, params: Params) -> Tensor:
        """Images [B, C, H, W] after their geometric steps."""
        return self._move.apply(images - self.fill, params).add_(self.fill)


class _Move(Sampled):
    """The geometric steps as a declarative operation: they cost one resampling together."""

    def __init__(self, resample: Interpolation):
        self.resample = resample

    def affine(self, params: Params, shape: torch.Size) -> Tensor:
        """Shears hold the image's top left corner in place, as the AutoAugment paper has it; rotations its center."""
        step, magnitude = params["step"], params["magnitude"]
        shear_x, shear_y, move_x, move_y, angle = (torch.where(step == n, magnitude, 0.0) for n in _GEOMETRY)
        cos, sin = angle.deg2rad().cos(), angle.deg2rad().sin()
        x, y = (shape[3] - 1) / 2, (shape[2] - 1) / 2
        matrix = torch.eye(3, device=step.device, dtype=magnitude.dtype).repeat(len(step), 1, 1)
        matrix[:, 0, 0], matrix[:, 0, 1] = cos, sin - shear_x
        matrix[:, 1, 0], matrix[:, 1, 1] = -sin - shear_y, cos
        # The corner lies half a pixel before the first pixel's center.
        matrix[:, 0, 2] = x - cos * x - sin * y - shear_x / 2 + move_x.trunc()
        matrix[:, 1, 2] = y + sin * x - cos * y - shear_y / 2 + move_y.trunc()
        return matrix


def gray(images: Tensor) -> Tensor:
    """Luma [B, 1, H, W] of images with 3 channels; of others the mean of the channels."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]


def blend(base: Tensor, images: Tensor, magnitude: Tensor) -> Tensor:
    """``base + (1 + magnitude) · (images − base)``, clipped to [0, 1]."""
    return (images - base).mul_(by_sample(1 + magnitude)).add_(base).clamp_(0, 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Images in 256 levels, of whose 8 bits the upper ``bits`` [B] stay and the others become 0."""
    step = by_sample(torch.exp2(8 - bits.round()))
    return images.mul(255).round_().div_(step).floor_().mul_(step).mul_(1 / 255)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Values from ``threshold`` [B] on are inverted."""
    # 204 of 255 counts as 0.8, whichever way it was rounded.
    return torch.where(images + 1e-6 >= by_sample(threshold), 1 - images, images)


_STRETCH = AutoContrast()

_CHANGES = {
    "Brightness": lambda images, params: blend(images.new_zeros(()), images, params["magnitude"]),
    "Color": lambda images, params: blend(gray(images), images, params["magnitude"]),
    "Contrast": lambda images, params: blend(gray(images).mean((2, 3), keepdim=True), images, params["magnitude"]),
    "Sharpness": lambda images, params: sharpness(images, 1 + params["magnitude"]),
    "Posterize": lambda images, params: posterize(images, params["magnitude"]),
    "Solarize": lambda images, params: solarize(images, params["magnitude"]),
    "AutoContrast": lambda images, params: _STRETCH.apply(images, {}),
    "Equalize": lambda images, params: equalize(images),
    "Invert": lambda images, params: 1 - images,
}


def levels(draws: Draws, slot: int, bins: int, turns: int) -> Tensor:
    """[B, turns] in 0 … 1, one of ``bins`` equally spaced levels."""
    return draws.integers(slot, 0, bins, (turns,)) / (bins - 1)
