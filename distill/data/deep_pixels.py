"""The pixels of an image of 16 bits in memory, whose colors Pillow would reduce to 8."""

from __future__ import annotations

import numpy as np
from PIL import Image

from distill.data.arrays import oriented
from distill.data.base import DataError
from distill.data.depth import color_values, full_scale, is_wide_color, widened

_ORIENTATION_TAG = 0x0112
_LUMA = (19595, 38470, 7471)
"""Pillow's weights of red, green and blue, of 65536 (ITU-R 601)."""


def deep_pixels(image: Image.Image, name: str, bits: int, channels: int) -> np.ndarray:
    """The pixels of an image of more than 8 bits.

    Args:
        image: not loaded yet.
        name: for errors.
        bits: in use, 8 to 16.
        channels: 1 to 4, see :func:`distill.data.decode.decode`.

    Returns:
        uint16 [H, W, channels], white is 65535.
    """
    values = color_values(image)
    if values is None and is_wide_color(image):
        raise DataError(f"{name}: its 16-bit colors cannot be decoded; store it as a plain PNG or TIFF")
    image.load()
    orientation = orientation_of(image)
    if values is None:
        values, alpha = gray_values(image, name)[:, :, None], transparent_alpha(image)
        if alpha is not None:
            values = np.concatenate([values.astype(np.uint16), widened(alpha, 16)[:, :, None]], 2)
    pixels = full_scale(values, bits)
    if pixels.shape[2] == 4 and channels != 4 and image.mode == "RGB":
        pixels = pixels[:, :, :3]  # the fourth band is not alpha
    return oriented(_with_bands(pixels, channels, name), orientation)


def _with_bands(pixels: np.ndarray, channels: int, name: str) -> np.ndarray:
    """The channels that are asked for, of uint16 [H, W, 1 to 4]: gray, with alpha, RGB, or RGB and a fourth band."""
    bands = pixels.shape[2]
    color, alpha = (pixels[:, :, :-1], pixels[:, :, -1:]) if bands in (2, 4) else (pixels, None)
    if channels in (1, 3) and alpha is not None:
        opaque = alpha / 65535
        color = np.rint(color * opaque + 65535 * (1 - opaque)).astype(np.uint16)
    if channels in (1, 2) and color.shape[2] == 3:
        luma = (color.astype(np.uint32) * np.array(_LUMA, np.uint32)).sum(2, dtype=np.uint32)
        color = ((luma + 0x8000) >> 16).astype(np.uint16)[:, :, None]
    if channels in (3, 4) and color.shape[2] == 1:
        color = np.repeat(color, 3, 2)
    if channels in (1, 3):
        return color
    if channels in (2, 4):
        return np.concatenate([color, np.full_like(color[:, :, :1], 65535) if alpha is None else alpha], 2)
    raise few_bands(name, channels, f"{bands} of 16 bits")


def few_bands(name: str, channels: int, bands: str) -> DataError:
    """The error for a file without the channels that are asked for.

    Args:
        name: of the file.
        channels: that are asked for.
        bands: that it has, in words.

    Returns:
        The error, to be raised.
    """
    return DataError(
        f"{name}: data.channels is {channels}, and the file has {bands}; more than four channels come from TIFFs with"
        " as many bands, .npy arrays, arrays in Parquet or a source of your own"
    )


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 if it has none."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the EXIF block is broken; the pixels may still be valid
        return 1


def gray_values(image: Image.Image, name: str) -> np.ndarray:
    """The values of a gray image of 16 bits."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name}: values from {values.min()} to {values.max()} have no defined range; store 0 to 65535")
    return values


def transparent_alpha(image: Image.Image) -> np.ndarray | None:
    """uint8, 0 where a gray image has its transparent value; None if it has none."""
    transparent = image.info.get("transparency")
    return None if transparent is None else np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
