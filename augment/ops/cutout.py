"""Cutout."""

from __future__ import annotations

import torch
from torch import Tensor

from augment.draws import Draws
from augment.sometimes import Params, Sometimes


class Cutout(Sometimes):
    """Fills a square whose center lies anywhere in the image; the part outside the image is cut off.

    DeVries & Taylor, "Improved regularization of convolutional neural networks with cutout" (arXiv 1708.04552): 16
    pixels for CIFAR-10, 8 for CIFAR-100, 20 for SVHN, at 32 pixels. For several squares name it several times.

    Args:
        length: the square's side as a fraction of the image's shorter side; the paper's 16 of 32 pixels are 0.5.
        fill: its value, in [0, 1]. The paper has the data set's mean (0 after normalization); 0.5 is near it.
        p: probability for a sample.

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("Cutout")
        >>> images = torch.ones(1, 1, 4, 4)
        >>> op = Cutout(length=0.5, fill=0.0)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0., 1., 1., 1.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.],
                [1., 1., 1., 1.]])
    """

    def __init__(self, length: float = 0.5, fill: float = 0.5, p: float = 1.0):
        super().__init__(p)
        if not 0 < length <= 1:
            raise ValueError(f"length is a fraction of the shorter side, above 0 and up to 1, not {length}")
        self.length, self.fill = length, fill

    def draw(self, draws: Draws, shape: torch.Size) -> Params:
        """``y`` and ``x`` [B]: the pixel at the center."""
        return {"y": draws.integers(1, 0, shape[2]), "x": draws.integers(2, 0, shape[3])}

    def erase(self, params: Params, shape: torch.Size) -> tuple[Tensor, Tensor]:
        side = max(1, round(self.length * min(shape[2:])))
        top, left = params["y"] - side // 2, params["x"] - side // 2
        length = torch.full_like(top, side)
        return torch.stack([top, left, length, length], 1), torch.full_like(top, self.fill, dtype=torch.float32)
