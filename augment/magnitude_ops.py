"""The steps of RandAugment, TrivialAugment, AutoAugment and AugMix: a kind and a magnitude, drawn for each sample.

A step is an index into ``STEPS`` and a magnitude in the unit of that step. The parameters of an operation are two
tensors [B, n]: n steps for each sample, in the order in which they are applied. Position by position, each kind of step
is computed for the samples that drew it (see :func:`augment.sometimes.change_`).

The definitions are torchvision's for uint8 images, which are PIL's up to rounding. Images are not rounded to 256 levels
between the steps, except by posterize and equalize, which are defined on levels.
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
    "Rotate",  # degrees, counterclockwise
    "Brightness",  # the factor - 1
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",  # bits that are kept
    "Solarize",  # the threshold: values from there on are inverted
    "AutoContrast",
    "Equalize",
    "Invert",
)
_GEOMETRY = range(1, 6)


@dataclass(frozen=True)
class MagnitudeRange:
    """A step with its magnitudes at levels 0 and 1, linear between. ``signed``: either sign, with equal probability."""

    step: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    relative: bool = False
    """The magnitude is a fraction of the image's width (steps whose name ends in X) or height (Y)."""


MagnitudeSpace = tuple[MagnitudeRange, ...]


@lru_cache(maxsize=32)
def _table(space: MagnitudeSpace, device: torch.device) -> tuple[Tensor, ...]:
    # Cached: making a tensor on a GPU from Python numbers synchronizes with the GPU.
    along_x = [span.relative and span.step.endswith("X") for span in space]
    along_y = [span.relative and span.step.endswith("Y") for span in space]
    steps = torch.tensor([STEPS.index(span.step) for span in space], device=device)
    numbers = [(span.low, span.high, span.signed) for span in space]
    return steps, torch.tensor(numbers, device=device), torch.tensor([along_x, along_y], device=device)


def magnitudes(space: MagnitudeSpace, choice: Tensor, level: Tensor, negative: Tensor, shape: torch.Size) -> Params:
    """The steps and magnitudes of a batch.

    Args:
        space: the steps to choose from, with their ranges.
        choice: [B, n] int64, indices into ``space``.
        level: [B, n] floats in 0 … 1, the position in each range.
        negative: [B, n] bool, whether the magnitude of a ``signed`` step is negative.
        shape: of the images, [B, C, H, W].

    Returns:
        ``step`` [B, n] int64, indices into ``STEPS``, and ``magnitude`` [B, n] in the unit of each step.
    """
    steps, numbers, (along_x, along_y) = _table(space, choice.device)
    low, high, signed = numbers[choice].unbind(-1)
    step = steps[choice]
    size = torch.where(along_x[choice], shape[3], torch.where(along_y[choice], shape[2], 1))
    magnitude = (low + (high - low) * level) * size
    return {"step": step, "magnitude": torch.where(negative & signed.bool(), -magnitude, magnitude)}


class MagnitudeOperation(Sampled):
    """Base of the operations whose parameters are steps and magnitudes.

    It counts as geometric although some steps change only colors: views that share their geometry share all steps.
    """

    geometric = True

    def __init__(self, interpolation: Interpolation, fill: float):
        if interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation is one of {', '.join(get_args(Interpolation))}, not {interpolation!r}")
        if not 0 <= fill <= 1:
            raise ValueError(f"fill is a value in 0 … 1, not {fill}")
        self.interpolation, self.fill = interpolation, fill
        self._move = _GeometricSteps(interpolation)

    def apply(self, images: Tensor, params: Params) -> Tensor:
        images = images.clone()
        for position in range(params["step"].shape[1]):
            self.step_(images, params["step"][:, position], params["magnitude"][:, position])
        return images

    def step_(self, images: Tensor, step: Tensor, magnitude: Tensor) -> None:
        """Apply one step to every sample, in place.

        Args:
            images: [B, C, H, W] in [0, 1]; overwritten.
            step: [B] int64, indices into ``STEPS``.
            magnitude: [B], in the unit of each sample's step.
        """
        params = {"step": step, "magnitude": magnitude}
        change_(images, (step >= _GEOMETRY.start) & (step < _GEOMETRY.stop), self.moved, params)
        for name, change in _CHANGES.items():
            change_(images, step == STEPS.index(name), change, params)

    def moved(self, images: Tensor, params: Params) -> Tensor:
        """Images [B, C, H, W] after their geometric steps."""
        return self._move.apply(images - self.fill, params).add_(self.fill)


class _GeometricSteps(Sampled):
    """The geometric steps as one affine operation: one resampling per position for all of them."""

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
    """``base + (1 + magnitude) · (images − base)``, clipped to [0, 1].

    Args:
        base: broadcasts to ``images``; the result at magnitude -1.
        images: [B, C, H, W]; the result at magnitude 0.
        magnitude: [B].

    Returns:
        [B, C, H, W] in [0, 1].
    """
    return (images - base).mul_(by_sample(1 + magnitude)).add_(base).clamp_(0, 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Round images to 256 levels, keep the upper ``bits`` [B] of the 8 bits and set the others to 0."""
    step = by_sample(torch.exp2(8 - bits.round()))
    return images.mul(255).round_().div_(step).floor_().mul_(step).mul_(1 / 255)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values from ``threshold`` [B] on."""
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


def levels(draws: Draws, slot: int, bins: int, count: int) -> Tensor:
    """Draw levels uniformly.

    Args:
        draws: of the operation.
        slot: number of the draw.
        bins: how many equally spaced levels there are.
        count: levels per sample.

    Returns:
        [B, count] floats in 0 … 1.
    """
    return draws.integers(slot, 0, bins, (count,)) / (bins - 1)
