"""The decoder of all sources: bytes, a path or a PIL image → uint8 [H, W, C], RGB unless other channels are asked for.

The same picture gives the same pixels in every file format:

- EXIF orientation is applied (a broken EXIF block counts as none); of an animation, the first frame is used;
- transparency (RGBA, LA, palette or a transparent color) is composited on white, as in a browser, unless four channels
  are asked for;
- of values of more than 8 bits, the highest 8 of the bits in use are kept (:mod:`distill.data.depth`), of gray and of
  color alike;
- CMYK and YCCK are converted without a color profile; embedded ICC profiles are ignored, as is usual in training.

The size in the header is checked before decoding, since a file of a few kB can declare gigabytes of pixels.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.base import DataError
from distill.data.depth import color_values, declared_bits, eight_bits, four_bands, is_wide
from distill.data.formats import extension_of, extensions, formats_of, unreadable_because

PIXEL_LIMIT = 50_000_000
"""Default limit of width × height; 150 MB as RGB."""
MAX_PIXEL_LIMIT = 2 * 89_478_485
"""Pillow raises an error for larger images."""
BACKGROUND = (255, 255, 255)

_ORIENTATION_TAG = 0x0112
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    source: bytes | str | Path | Image.Image,
    name: str,
    pixel_limit: int = PIXEL_LIMIT,
    bits: int | None = None,
    channels: int = 3,
) -> np.ndarray:
    """The image with the channels that the networks take.

    Args:
        source: an encoded image, its path, or an opened PIL image.
        name: its path or sample id, for errors.
        pixel_limit: largest width × height, at most ``MAX_PIXEL_LIMIT``.
        bits: of an image of more than 8 bits, the number of bits in use, 8 to 16: white is 2^bits − 1, and larger
            values are white too. None: the bits that the file declares.
        channels: 3: RGB; 1: gray, the luma of a color image; 4: RGBA, not composited, or the four bands of a TIFF; 2:
            gray and alpha.

    Returns:
        uint8 [H, W, channels].

    Raises:
        DataError: missing, empty, truncated or corrupt, no image, too large, a pixel type without a defined range, or
            more than four channels asked for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or unusual files; errors are raised below
            if isinstance(source, Image.Image):
                return _array(source, name, pixel_limit, bits, channels)
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=formats_of(name)) as image:
                return _array(image, name, pixel_limit, bits, channels)
    except DataError:
        raise
    except FileNotFoundError as error:
        target = os.path.islink(str(source)) and os.readlink(str(source))
        why = f"a link to {target}, which does not exist" if target else "no such file"
        raise DataError(f"{name}: {why}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than pixel_limit = {pixel_limit:,} pixels ({error})") from error
    except Image.UnidentifiedImageError as error:
        empty = source == b"" or (isinstance(source, str | Path) and Path(source).stat().st_size == 0)
        missing = f" ({unreadable_because(name)})" if extension_of(name) not in extensions() else ""
        why = "an empty file" if empty else f"not an image that can be read{missing}"
        raise DataError(f"{name}: {why}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
        raise DataError(f"{name}: cannot be decoded: {error}") from error


def _array(image: Image.Image, name: str, pixel_limit: int, bits: int | None, channels: int) -> np.ndarray:
    width, height = image.size
    if width * height > pixel_limit:
        raise DataError(f"{name}: {width} × {height} pixels, more than pixel_limit = {pixel_limit:,}")
    wide = is_wide(image)
    bits = bits or declared_bits(image)
    values = color_values(image) if wide and bits < 16 else None  # before load(), which keeps 8 bits of each
    bands = four_bands(image) if channels == 4 else None
    image.load()
    orientation = _orientation(image)  # after load(), which rotates a TIFF and removes its tag
    if bands is not None:
        image = Image.fromarray(bands if bands.dtype == np.uint8 else eight_bits(bands, bits))
    elif values is not None:
        image = Image.fromarray(eight_bits(values, bits))
    elif wide and image.mode.startswith("I"):
        image = _gray(image, bits, name)
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: 32-bit pixels (mode {image.mode}) have no defined range; store 8 or 16 bits")
    image = _with_bands(image, channels, name)
    if orientation in _TURN:
        image = image.transpose(_TURN[orientation])
    pixels = np.array(image)
    return pixels[:, :, None] if channels == 1 else pixels


def _with_bands(image: Image.Image, channels: int, name: str) -> Image.Image:
    """Gray, gray and alpha, RGB or RGBA."""
    if image.mode == "La":
        image = image.convert("LA")
    if channels in (1, 3):
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba)
        return image.convert("L" if channels == 1 else "RGB")
    if channels == 2:
        return image.convert("RGBA").convert("LA")
    if channels == 4:
        return image.convert("RGBA")
    bands = len(image.getbands())
    raise DataError(
        f"{name}: data.channels is {channels}, and the file has {bands} ({image.mode}); image files are read with 1 to"
        " 4 channels, others come from arrays in Parquet or a source of your own"
    )


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the EXIF block is broken; the pixels may still be valid
        return 1


def _gray(image: Image.Image, bits: int, name: str) -> Image.Image:
    """Gray of 16 bits → 8 bits, its transparent value (if any) → alpha."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{name}: values from {values.min()} to {values.max()} have no defined range; store 0 to 65535")
    gray = Image.fromarray(eight_bits(values, bits))
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
