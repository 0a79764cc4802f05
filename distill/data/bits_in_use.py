"""Images of more than 8 bits: how many of their bits are in use.

A 16-bit file often holds fewer bits: cameras and microscopes give 10, 12 or 14. Read as 16 bits, such images are nearly
black. A file does not say so, and a single dark image does not show it. The number is therefore chosen once for all
images of a source: the smallest of 8, 10, 12, 14 and 16 bits that holds the largest value of a sample of them, up to
``SAMPLE`` images chosen by the hash of their ids. A larger value in another image is white. The setting ``bits`` of a
source replaces this choice.

If it is more than 8, all images of the source are uint16 up to the views, with white at 65535, so that no bit is lost;
views are floats. ``data.depth`` 8 keeps the highest 8 bits instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.arrays import is_tiff, read_npy, read_tiff
from distill.data.decode import MAX_PIXEL_LIMIT
from distill.data.depth import color_values, is_wide, is_wide_color
from distill.data.formats import extension_of, formats_of, is_array
from distill.data.split import by_hash

BITS = (8, 10, 12, 14, 16)
SAMPLE = 128
"""Largest number of images whose values are looked at."""
_DEEP = frozenset(
    [".png", ".apng", ".tif", ".tiff", ".pgm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".npy", ""]
)
"""Extensions of the formats that have more than 8 bits."""


def bits_in_use(ids: Sequence[str], read: Callable[[int], bytes | str | Path | np.ndarray | None]) -> int | None:
    """Number of bits in use of the images of more than 8 bits, from a sample of them.

    Args:
        ids: of all images of a source.
        read: index → the encoded image, its path, or an array.

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


def _largest(source: bytes | str | Path | np.ndarray | None, name: str) -> int | None:
    """Largest value of an image of more than 8 bits; None for another one, or if it cannot be read."""
    if source is None:
        return None
    if isinstance(source, np.ndarray):
        return _largest_of(source)
    try:
        if is_array(name):
            return _largest_of(read_npy(source, name, MAX_PIXEL_LIMIT))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=formats_of(name)) as image:
                if not is_wide(image):
                    return None
                values = color_values(image)
                values = np.asarray(image) if values is None else values[..., :3]
                return int(values.max()) if not is_wide_color(image) or values.dtype == np.uint16 else None
    except Image.UnidentifiedImageError:
        try:
            return _largest_of(read_tiff(source, name, MAX_PIXEL_LIMIT)) if is_tiff(source) else None
        except Exception:
            return None
    except Exception:  # the decoder names an unreadable image when it is its turn
        return None


def _largest_of(array: np.ndarray) -> int | None:
    """Largest value of an array, 65535 for floats; None if it has 8 bits."""
    if array.dtype.kind == "f":
        return 65535
    return int(array.max()) if array.dtype == np.uint16 and array.size else None
