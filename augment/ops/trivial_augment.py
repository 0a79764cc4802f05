"""TrivialAugment."""

from __future__ import annotations

import torch

from augment.draws import Draws
from augment.magnitude_ops import Interpolation, MagnitudeOperation, MagnitudeRange, levels, magnitudes
from augment.sometimes import Params

SPACE = (
    MagnitudeRange("Identity"),
    MagnitudeRange("ShearX", 0, 0.99, signed=True),
    MagnitudeRange("ShearY", 0, 0.99, signed=True),
    MagnitudeRange("TranslateX", 0, 32, signed=True),
    MagnitudeRange("TranslateY", 0, 32, signed=True),
    MagnitudeRange("Rotate", 0, 135, signed=True),
    MagnitudeRange("Brightness", 0, 0.99, signed=True),
    MagnitudeRange("Color", 0, 0.99, signed=True),
    MagnitudeRange("Contrast", 0, 0.99, signed=True),
    MagnitudeRange("Sharpness", 0, 0.99, signed=True),
    MagnitudeRange("Posterize", 8, 2),
    MagnitudeRange("Solarize", 1, 0),
    MagnitudeRange("AutoContrast"),
    MagnitudeRange("Equalize"),
)
BINS = 31


class TrivialAugmentWide(MagnitudeOperation):
    """One step, any of 14, at any of 31 magnitudes.

    Müller & Hutter, "TrivialAugment" (arXiv 2103.10158), the wide space.

    Args:
        interpolation: how moved pixels are read: ``nearest`` (as in torchvision) or ``bilinear``.
        fill: value of the pixels outside the image, in [0, 1].

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("TrivialAugmentWide")
        >>> images = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
        >>> op = TrivialAugmentWide()
        >>> op.apply(images, op.sample(draws, images.shape)).flatten()
        tensor([0.8700, 0.3776, 0.1314])
    """

    def __init__(self, interpolation: Interpolation = "nearest", fill: float = 0.0):
        super().__init__(interpolation, fill)

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        choice = draws.integers(0, 0, len(SPACE), (1,))
        return magnitudes(SPACE, choice, levels(draws, 1, BINS, 1), draws.bernoulli(2, 0.5, (1,)), shape)
