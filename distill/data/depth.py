"""Pixels of more than 8 bits: which images have them, and how they become 8 or 16 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277


def is_wide(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, has samples of more than 8 bits and at most 32, as integers."""
    return image.mode.startswith("I") or is_wide_color(image)


def declared_bits(image: Image.Image) -> int:
    """Bits of a sample that the file declares, 9 to 16."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return max(bits) if 8 < max(bits) <= 16 else 16


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The highest 8 of ``bits`` bits, uint8; values above 2^bits − 1 become 255."""
    return (np.minimum(values, 2**bits - 1) >> (bits - 8)).astype(np.uint8)


def full_scale(values: np.ndarray, bits: int) -> np.ndarray:
    """uint16 from values of ``bits`` bits: 2^bits − 1, and what is above, becomes 65535."""
    white = 2**bits - 1
    return ((np.minimum(values, white).astype(np.uint32) * 65535 + white // 2) // white).astype(np.uint16)


def widened(pixels: np.ndarray, depth: int) -> np.ndarray:
    """Pixels of 8 bits with ``depth`` bits, 8 or 16: 255 becomes 65535."""
    return pixels if depth == 8 or pixels.dtype != np.uint8 else pixels.astype(np.uint16) * np.uint16(257)


def depth_of(bits: int | None) -> int:
    """Bits of a value of a source's images: 16 if more than 8 bits of some are in use."""
    return 16 if bits is not None and bits > 8 else 8


def color_values(image: Image.Image) -> np.ndarray | None:
    """uint16 [H, W, 3 or 4] of a color image of 16 bits, of which Pillow keeps only the high byte; None for others."""
    values = _by_opencv(image) if is_wide_color(image) else None
    return None if values is None or values.dtype != np.uint16 else values


def four_bands(image: Image.Image) -> np.ndarray | None:
    """[H, W, 4], uint8 or uint16, of a TIFF whose fourth band is not alpha, which Pillow drops; None for others."""
    tags = getattr(image, "tag_v2", {})
    if image.format != "TIFF" or image.mode != "RGB" or tags.get(_SAMPLES_PER_PIXEL) != 4:
        return None
    values = _by_opencv(image)
    return None if values is None or values.shape[2] != 4 else values


def _by_opencv(image: Image.Image) -> np.ndarray | None:
    """[H, W, 3 or 4] of an image that is not loaded yet, with the file's own bits and bands; None if OpenCV fails."""
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None:
        return None
    import cv2

    image.fp.seek(0)
    encoded = np.frombuffer(image.fp.read(), np.uint8)
    image.fp.seek(0)
    values = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if values is None or values.ndim != 3:
        return None
    return values[..., [2, 1, 0, 3][: values.shape[2]]]  # OpenCV's order is BGR


def is_wide_color(image: Image.Image) -> bool:
    """Whether a color image, not yet loaded, has 16 bits a sample."""
    if not isinstance(image, ImageFile.ImageFile):
        return False
    if image.mode not in ("RGB", "RGBA", "RGBX") or image.format not in ("PNG", "TIFF"):
        return False
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
    return isinstance(raw, str) and "16" in raw
