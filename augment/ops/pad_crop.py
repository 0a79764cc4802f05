"""Padding, then a crop: the augmentation of small images."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from augment.draws import Draws
from augment.operation import Sampled
from augment.sometimes import Params

Padding = Literal["zeros", "border", "reflection", "symmetric"]


class PadCrop(Sampled):
    """Pads the border and cuts out ``size`` pixels at a position drawn uniformly, in whole pixels.

    The augmentation of CIFAR since "Deeply-supervised nets" (arXiv 1409.5185) and ResNet (arXiv 1512.03385).

    Args:
        size: (height, width) of the crop; the network's input size unless given.
        pixels: how many are added to every side.
        padding: their values: ``zeros`` (black), ``border`` (the outermost pixel repeated), ``reflection`` (the image
            mirrored about its outermost pixels) or ``symmetric`` (mirrored about its edge).

    Example:
        >>> import augment, torch
        >>> draws = augment.Draws(0, 0, "student", torch.tensor([7])).op("PadCrop")
        >>> images = torch.arange(9.0).view(1, 1, 3, 3) / 8
        >>> op = PadCrop((3, 3), pixels=1)
        >>> op.apply(images, op.sample(draws, images.shape))[0, 0]
        tensor([[0.0000, 0.0000, 0.0000],
                [0.0000, 0.1250, 0.2500],
                [0.3750, 0.5000, 0.6250]])
    """

    axis_aligned = True

    def __init__(self, size: tuple[int, int], pixels: int = 4, padding: Padding = "zeros"):
        if not isinstance(size, tuple | list) or len(size) != 2 or min(size) < 1:
            raise ValueError(f"size is (height, width) in pixels, not {size}")
        if pixels < 0:
            raise ValueError(f"pixels is a number from 0, not {pixels}")
        if padding not in get_args(Padding):
            raise ValueError(f"padding is one of {', '.join(get_args(Padding))}, not {padding!r}")
        self.size, self.pixels, self.padding = (int(size[0]), int(size[1])), pixels, padding

    def sample(self, draws: Draws, shape: torch.Size) -> Params:
        """``top`` and ``left`` [B]: the crop's corner in the image, from −pixels."""
        free = [side + 2 * self.pixels - cut for side, cut in zip(shape[2:], self.size)]
        if min(free) < 0:
            raise ValueError(
                f"PadCrop cuts out {self.size[0]} x {self.size[1]} pixels, but the images have {shape[2]} x {shape[3]} "
                f"and {self.pixels} more on every side; give it more pixels, or put a Resize before it"
            )
        top, left = (draws.integers(slot, 0, n + 1) - self.pixels for slot, n in enumerate(free))
        return {"top": top, "left": left}

    def affine(self, params: Params, shape: torch.Size) -> Tensor:
        matrix = torch.eye(3, device=params["top"].device).repeat(shape[0], 1, 1)
        matrix[:, 0, 2], matrix[:, 1, 2] = -params["left"], -params["top"]
        return matrix

    def output_size(self, shape: torch.Size) -> tuple[int, int]:
        return self.size
