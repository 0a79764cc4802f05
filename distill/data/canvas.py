"""Resizes images of any size to a square canvas of ``size`` pixels, so that they fit in one batch.

Augmentation crops the views from the canvas and resizes them to the networks' sizes on the device. Resizing is bicubic
and antialiased (Pillow). JPEG's scaled decoding (``draft``) is not used, since it changes pixels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Fit = Literal["crop", "pad", "squash"]
PADDING = (124, 116, 104)
"""ImageNet's mean color, about zero after normalization."""


def to_canvas(image: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """The image on a canvas.

    Args:
        image: uint8 [H, W, C].
        size: side of the canvas in pixels.
        fit: ``crop`` the short side fills the canvas, the middle of the long side is kept · ``pad`` the long side fills
            it, the rest is ``PADDING`` · ``squash`` both sides fill it, the aspect ratio is lost.

    Returns:
        uint8 [size, size, C]. Other than three channels are resized one by one: Pillow takes a fourth for alpha.
    """
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if image.shape[2] != 3:
        padding = [PADDING[channel % 3] for channel in range(image.shape[2])]
        bands = [_on_canvas(Image.fromarray(image[:, :, c]), size, fit, padding[c]) for c in range(image.shape[2])]
        return np.stack(bands, 2)
    return _on_canvas(Image.fromarray(image), size, fit, PADDING)


def _on_canvas(pixels: Image.Image, size: int, fit: Fit, padding: int | tuple[int, ...]) -> np.ndarray:
    width, height = pixels.size
    if fit == "squash":
        return np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC))
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
        return np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC, box=box))
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new(pixels.mode, (size, size), padding)
    canvas.paste(pixels.resize(shape, Image.Resampling.BICUBIC), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(canvas)
