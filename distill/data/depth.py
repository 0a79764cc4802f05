"""Images of more than 8 bits: how many of their bits are in use.

A 16-bit file often holds fewer bits: cameras and microscopes give 10, 12 or 14. Read as 16 bits, such images are nearly
black. A file does not say so, and a single dark image does not show it. The number is therefore chosen once for all
images of a source: the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of a sample of them, up to
``SAMPLE`` images chosen by the hash of their ids. A larger value in another image is white. The setting ``bits`` of a
source replaces this choice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from distill.data.formats import extension_of, formats_of
from distill.data.split import by_hash

BITS = (8, 10, 12, 14, 16)
SAMPLE = 128
"""Largest number of images whose values are looked at."""
_DEEP = frozenset([".png", ".apng", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ""])
"""Extensions of the formats that have more than 8 bits."""
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL = 258, 277


def is_wide(image: Image.Image) -> bool:
    """Whether an image, not yet loaded, has samples of more than 8 bits and at most 32, as integers."""
    return image.mode.startswith("I") or _is_wide_color(image)


def declared_bits(image: Image.Image) -> int:
    """Bits of a sample that the file declares, 9 to 16."""
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
    return max(bits) if 8 < max(bits) <= 16 else 16


def eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """The highest 8 of ``bits`` bits, uint8; values above 2^bits − 1 become 255."""
    return (np.minimum(values, 2**bits - 1) >> (bits - 8)).astype(np.uint8)


def color_values(image: Image.Image) -> np.ndarray | None:
    """uint16 [H, W, 3 or 4] of a color image of 16 bits, of which Pillow keeps only the high byte; None for others."""
    values = _by_opencv(image) if _is_wide_color(image) else None
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


def bits_in_use(ids: Sequence[str], read: Callable[[int], bytes | str | Path | None]) -> int | None:
    """Number of bits in use of the images of more than 8 bits, from a sample of them.

    Args:
        ids: of all images of a source.
        read: index → the encoded image or its path.

    Returns:
        One of ``BITS``; None if no image of the sample has more than 8 bits.
    """
    deep = [index for index, id in enumerate(ids) if extension_of(id) in _DEEP]
    largest = [
        value
        for index in by_hash(deep, ids, salt="bits")[:SAMPLE]
        if (value := _largest(read(index), ids[index])) is not None
    ]
    if not largest:
        return None
    return next((bits for bits in BITS if max(largest) < 2**bits), 16)


def _largest(source: bytes | str | Path | None, name: str) -> int | None:
    """Largest value of an image of more than 8 bits; None for another one, or if it cannot be read."""
    if source is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=formats_of(name)) as image:
                if not is_wide(image):
                    return None
                values = color_values(image)
                values = np.asarray(image) if values is None else values[..., :3]
                return int(values.max()) if not _is_wide_color(image) or values.dtype == np.uint16 else None
    except Exception:  # the decoder names an unreadable image when it is its turn
        return None


def _is_wide_color(image: Image.Image) -> bool:
    if not isinstance(image, ImageFile.ImageFile):
        return False
    if image.mode not in ("RGB", "RGBA", "RGBX") or image.format not in ("PNG", "TIFF"):
        return False
    arguments = image.tile[0].args if image.tile else ""
    raw = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
    return isinstance(raw, str) and "16" in raw
