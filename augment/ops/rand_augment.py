"""RandAugment."""

from __future__ import annotations

import torch

from augment.draws import Draws
from augment.magnitude_ops import Interpolation, MagnitudeOperation, MagnitudeRange, magnitudes
from augment.sometimes import Params

SPACE = (
    MagnitudeRange("Identity"),
    MagnitudeRange("ShearX", 0, 0.3, signed=True),
    MagnitudeRange("ShearY", 0, 0.3, signed=True),
    MagnitudeRange("TranslateX", 0, 150 / 331, signed=True, relative=True),
    MagnitudeRange("TranslateY", 0, 150 / 331, signed=True, relative=True),
    MagnitudeRange("Rotate", 0, 30, signed=True),
    MagnitudeRange("Brightness", 0, 0.9, signed=True),
    MagnitudeRange("Color", 0, 0.9, signed=True),
    MagnitudeRange("Contrast", 0, 0.9, signed=True),
    MagnitudeRange("Sharpness", 0, 0.9, signed=True),
    MagnitudeRange("Posterize", 8, 4),
    MagnitudeRange("Solarize", 1, 0),
    MagnitudeRange("AutoContrast"),
    MagnitudeRange("Equalize"),
)
HIGHEST = 30


class RandAugment(MagnitudeOperation):
    """``num_ops`` steps one after another, each any of 14, all of one magnitude.

    Cubuk et al., "RandAugment" (arXiv 1909.13719), with the steps and ranges of torchvision.

    Args:
        num_ops: how many steps (the paper's N: 2 for ImageNet, 1 … 3 elsewhere).
        magnitude: 0 … 30 (the paper's M: 9 for ResNet-50 on ImageNet; timm's scale ends at 10: its m9 is 27 here).
        mstd: standard deviation of normal noise on the magnitude of every step, as in timm; 0 is the paper's.
        interpolation: how moved pixels are read: ``nearest`` (as in the paper and torchvision) or ``bilinear``.
        fill: value of the pixels outside the image, in [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("RandAugment")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = RandAugment(num_ops=2, magnitude=9)
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.7779, 0.4071, 0.2216])
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: float = 9,
        mstd: float = 0.0,
        interpolation: Interpolation = "nearest",
        fill: float = 0.0,
    ):
        super().__init__(interpolation, fill)
        if num_ops < 1:
            raise ValueError(f"num_ops is a number of steps from 1, not {num_ops}")
        if not 0 <= magnitude <= HIGHEST:
            raise ValueError(f"magnitude is in 0 … {HIGHEST}, not {magnitude}")
        if mstd < 0:
            raise ValueError(f"mstd is a standard deviation from 0, not {mstd}")
        self.num_ops, self.magnitude, self.mstd = num_ops, magnitude, mstd

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        choice = draws.integers(0, 0, len(SPACE), (self.num_ops,))
        negative = draws.bernoulli(1, 0.5, (self.num_ops,))
        level = torch.full_like(choice, self.magnitude, dtype=torch.float32)
        if self.mstd:
            level = (level + self.mstd * draws.normal(2, (self.num_ops,))).clamp_(0, HIGHEST)
        return magnitudes(SPACE, choice, level / HIGHEST, negative, shape)
