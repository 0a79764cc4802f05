"""Images that Pillow does not read: ``.npy`` arrays, and TIFFs with more than four bands (with ``tifffile``).

An array is [H, W] or [H, W, C] (or [C, H, W], where only C fits ``data.channels``), uint8, uint16 or floats in [0, 1].
It is never unpickled.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from distill.data.base import DataError
from distill.data.depth import eight_bits, full_scale, widened

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF, and of one above 4 GB."""
_ORIENTATION_TAG = "Orientation"


def is_tiff(source: bytes | str | Path) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    if isinstance(source, bytes):
        return source[:4] in _TIFF
    with open(source, "rb") as file:
        return file.read(4) in _TIFF


def read_npy(source: bytes | str | Path, name: str, pixel_limit: int) -> np.ndarray:
    """The array of an ``.npy`` file.

    Args:
        source: its content or path.
        name: for errors.
        pixel_limit: largest width × height.

    Returns:
        As it was saved.

    Raises:
        DataError: no array, one of Python objects, or more pixels.
    """
    try:
        if isinstance(source, bytes):
            array = np.load(BytesIO(source), allow_pickle=False)
        else:
            array = np.load(source, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy raises OSError, ValueError, EOFError and more
        why = "no array, or one of Python objects, which are never unpickled" if "pickle" in str(error) else str(error)
        raise DataError(f"{name}: not an array that can be read: {why}") from error
    _check_pixels(array.shape, name, pixel_limit)
    return np.asarray(array)


def read_tiff(source: bytes | str | Path, name: str, pixel_limit: int) -> np.ndarray:
    """The bands of a TIFF: those of its first page, or its pages of one band each.

    Args:
        source: its content or path.
        name: for errors.
        pixel_limit: largest width × height.

    Returns:
        [H, W, C], after its orientation.

    Raises:
        DataError: ``tifffile`` is not installed, or the file has more pixels.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError(
            f"{name}: a TIFF with more than four bands needs tifffile: pip install 'delta-distill[tiff]'"
        ) from error
    with tifffile.TiffFile(BytesIO(source) if isinstance(source, bytes) else source) as file:
        first = file.pages.first
        _check_pixels((first.imagelength, first.imagewidth), name, pixel_limit)
        pages = list(file.pages) if first.samplesperpixel == 1 else [first]
        same = [page for page in pages if page.shape == first.shape and page.dtype == first.dtype]
        bands = np.stack([page.asarray() for page in same], -1) if first.samplesperpixel == 1 else first.asarray()
        if first.axes.startswith("S"):
            bands = np.moveaxis(bands, 0, -1)
        tag = first.tags.get(_ORIENTATION_TAG)
        return oriented(bands, int(tag.value) if tag is not None else 1)


def as_image(array: np.ndarray, name: str, channels: int, bits: int | None, depth: int) -> np.ndarray:
    """An array as an image.

    Args:
        array: [H, W], [H, W, C] or [C, H, W]; uint8, uint16 or floats in [0, 1].
        name: for errors.
        channels: that it must have.
        bits: bits in use of uint16; None: 16.
        depth: bits of a value of the image, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, channels].

    Raises:
        DataError: another shape or type, or values outside [0, 1].
    """
    shape = list(array.shape)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[-1] != channels and array.shape[0] == channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != channels or not array.size:
        plane = "[H, W], " if channels == 1 else ""
        raise DataError(
            f"{name}: an array {shape}, and data.channels is {channels}: expected {plane}[H, W, {channels}] or"
            f" [{channels}, H, W]"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.uint8:
        return widened(np.ascontiguousarray(array), depth)
    if array.dtype == np.uint16:
        return np.ascontiguousarray((full_scale if depth == 16 else eight_bits)(array, bits or 16))
    if array.dtype.kind != "f":
        raise DataError(f"{name}: an array of {array.dtype}; images are uint8, uint16 or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):  # also if one is not a number
        raise DataError(f"{name}: values from {low:g} to {high:g}; an array of {array.dtype} holds values from 0 to 1")
    return np.ascontiguousarray(np.rint(array.astype(np.float64) * (2**depth - 1)).astype(f"uint{depth}"))


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels [H, W, …] turned as an EXIF orientation says: 1 to 8, others count as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _check_pixels(shape: tuple[int, ...], name: str, pixel_limit: int) -> None:
    sides = sorted(shape)[-2:]  # the channels are fewer
    if len(sides) == 2 and sides[0] * sides[1] > pixel_limit:
        raise DataError(f"{name}: {sides[1]} × {sides[0]} pixels, more than pixel_limit = {pixel_limit:,}")
