"""Fits images of any size to a canvas, so that they fit in one batch.

In training, augmentation crops the views from a square canvas of ``data.size`` pixels on the device. In evaluation the
canvas is the network's own input, made as timm's transform makes it from the exported ``pretrained_cfg``
(:attr:`Canvas.crop_mode`, bicubic, ``crop_pct`` 1): the same pixels within rounding, so that what is measured is what
ships. Resizing is bicubic and antialiased (Pillow). JPEG's scaled decoding (``draft``) is not used, since it changes
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from distill.data.depth import widened

Fit = Literal["crop", "pad", "squash"]
PADDING = (124, 116, 104)
"""ImageNet's mean color, about zero after normalization."""


@dataclass(frozen=True)
class Canvas:
    """Size of the canvas, and how an image is fitted to it.

    Args:
        size: (height, width) in pixels.
        fit: ``crop`` the short side fills the canvas, the middle of the long side is kept · ``pad`` the long side fills
            it, the rest is ``fill`` · ``squash`` both sides fill it, the aspect ratio is lost.
        fill: color of what ``pad`` adds, with one value for each channel; unused otherwise.
        channels: of the images, C.
        depth: bits of a value, 8 or 16; white is 255 or 65535.
    """

    size: tuple[int, int]
    fit: Fit = "crop"
    fill: tuple[int, ...] = PADDING
    channels: int = 3
    depth: int = 8

    @classmethod
    def of_training(cls, size: int, fit: Fit, channels: int, depth: int = 8) -> Canvas:
        """The square canvas that views are cropped from.

        Args:
            size: its side in pixels.
            fit: how images are fitted.
            channels: of the images; ``PADDING`` is repeated.
            depth: bits of a value, 8 or 16.

        Returns:
            The canvas.
        """
        white = (2**depth - 1) // 255
        return cls(
            (size, size), fit, tuple(white * PADDING[channel % 3] for channel in range(channels)), channels, depth
        )

    @classmethod
    def of_input(cls, size: tuple[int, int], mean: Sequence[float], fit: Fit, depth: int = 8) -> Canvas:
        """The canvas that is a network's input.

        Args:
            size: (height, width) of its input.
            mean: that it subtracts, in [0, 1], which timm pads with.
            fit: how images are fitted.
            depth: bits of a value, 8 or 16.

        Returns:
            The canvas.
        """
        if fit != "pad" and size[0] == size[1]:  # the same canvas for every network of this size
            return cls.of_training(size[0], fit, len(mean), depth)
        return cls(size, fit, tuple(round((2**depth - 1) * value) for value in mean), len(mean), depth)

    @property
    def crop_mode(self) -> str:
        """timm's name of ``fit``."""
        return {"crop": "center", "pad": "border", "squash": "squash"}[self.fit]

    @property
    def dtype(self) -> np.dtype:
        """uint8 or uint16."""
        return np.dtype(f"uint{self.depth}")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The image on the canvas: [H, W, C] → [*size, C] of ``dtype``; uint8 is widened to it.

        Other than three channels of 8 bits are resized one by one: Pillow takes a fourth for alpha, and has no colors
        of 16 bits.
        """
        image = widened(image, self.depth)
        if image.shape[:2] == self.size:
            return image
        if self.channels == 3 and self.depth == 8:
            fitted = self._fitted(Image.fromarray(image))
        else:
            fitted = np.stack([self._fitted(Image.fromarray(image[:, :, c])) for c in range(self.channels)], 2)
        return _padded(fitted, self.size, self.fill) if self.fit == "pad" else fitted

    def _fitted(self, pixels: Image.Image) -> np.ndarray:
        height, width = self.size
        wide, high = self._resized(pixels.height, pixels.width)
        if self.fit == "pad":
            return np.asarray(pixels.resize((wide, high), Image.Resampling.BICUBIC))
        # Only what the middle of the resized image shows is computed: of a panorama, a small part.
        left, top = round((wide - width) / 2) / wide, round((high - height) / 2) / high
        right, bottom = min(1.0, left + width / wide), min(1.0, top + height / high)
        box = (left * pixels.width, top * pixels.height, right * pixels.width, bottom * pixels.height)
        return np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC, box=box))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """(width, height) of the whole image once it is resized, rounded as timm rounds it."""
        rows, columns = self.size
        if self.fit == "squash":
            return columns, rows
        if self.fit == "crop" and rows == columns:
            long = int(rows * max(height, width) / min(height, width))
            return (rows, long) if width < height else (long, rows)
        ratios = (height / rows, width / columns)
        ratio = max(ratios) if self.fit == "pad" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))


def _padded(image: np.ndarray, size: tuple[int, int], fill: tuple[int, ...]) -> np.ndarray:
    canvas = np.empty((*size, image.shape[2]), image.dtype)
    canvas[:] = fill
    top, left = (size[0] - image.shape[0]) // 2, (size[1] - image.shape[1]) // 2
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas
