"""The decoder of all sources: bytes, a path or a PIL image → uint8 [H, W, C], RGB unless other channels are asked for.

The same picture gives the same pixels in every file format:

- EXIF orientation is applied (a broken EXIF block counts as none); of an animation, the first frame is used;
- transparency (RGBA, LA, palette or a transparent color) is composited on white, as in a browser, unless four channels
  are asked for;
- of values of more than 8 bits, all bits in use are kept (:mod:`distill.data.bits_in_use`) if ``depth`` is 16, else the
  highest 8, of gray and of color alike;
- CMYK and YCCK are converted without a color profile; embedded ICC profiles are ignored, as is usual in training.

``.npy`` arrays and TIFFs with more than four bands are read by :mod:`distill.data.arrays`.

The size in the header is checked before decoding, since a file of a few kB can declare gigabytes of pixels.
"""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.arrays import as_image, is_tiff, oriented, read_npy, read_tiff
from distill.data.base import DataError
from distill.data.deep_pixels import deep_pixels, few_bands, gray_values, orientation_of, transparent_alpha
from distill.data.depth import (
    color_values,
    declared_bits,
    eight_bits,
    four_bands,
    is_wide,
    widened,
)
from distill.data.formats import extension_of, extensions, formats_of, is_array, other_content, unreadable_because

PIXEL_LIMIT = 50_000_000
"""Default limit of width × height; 150 MB as RGB."""
MAX_PIXEL_LIMIT = 2 * 89_478_485
"""Pillow raises an error for larger images."""
BACKGROUND = (255, 255, 255)


def decode(
    source: bytes | str | Path | Image.Image,
    name: str,
    pixel_limit: int = PIXEL_LIMIT,
    bits: int | None = None,
    channels: int = 3,
    depth: int = 8,
) -> np.ndarray:
    """The image with the channels that the networks take.

    Args:
        source: an encoded image, its path, or an opened PIL image.
        name: its path or sample id, for errors.
        pixel_limit: largest width × height, at most ``MAX_PIXEL_LIMIT``.
        bits: of an image of more than 8 bits, the number of bits in use, 8 to 16: white is 2^bits − 1, and larger
            values are white too. None: the bits that the file declares.
        channels: 3: RGB; 1: gray, the luma of a color image; 4: RGBA, not composited, or the four bands of a TIFF; 2:
            gray and alpha; more: the bands of a TIFF. An array has as many.
        depth: bits of a value of the result, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, channels]; white is 255 or 65535.

    Raises:
        DataError: missing, empty, truncated or corrupt, no image, too large, a pixel type without a defined range, or
            without the channels that are asked for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or unusual files; errors are raised below
            if isinstance(source, Image.Image):
                return _array(source, name, pixel_limit, bits, channels, depth)
            if is_array(name):
                return as_image(read_npy(source, name, pixel_limit), name, channels, bits, depth)
            if channels > 4 and is_tiff(source):
                return as_image(read_tiff(source, name, pixel_limit), name, channels, bits, depth)
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=formats_of(name)) as image:
                return _array(image, name, pixel_limit, bits, channels, depth)
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
        if not empty and is_tiff(source):  # type: ignore[arg-type]
            raise _of_many_bands(source, name, pixel_limit, channels) from error  # type: ignore[arg-type]
        missing = f" ({unreadable_because(name)})" if extension_of(name) not in extensions() else ""
        other = "" if empty or missing else other_content(source)  # type: ignore[arg-type]
        why = "an empty file" if empty else f"not an image that can be read{missing}{other and ': '}{other}"
        raise DataError(f"{name}: {why}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
        raise DataError(f"{name}: cannot be decoded: {error}") from error


def _of_many_bands(source: bytes | str | Path, name: str, pixel_limit: int, channels: int) -> DataError:
    """The error for a TIFF that Pillow does not know."""
    try:
        bands = read_tiff(source, name, pixel_limit).shape[-1]
    except DataError as error:
        return error
    except Exception as error:
        return DataError(f"{name}: cannot be decoded: {error}")
    return DataError(f"{name}: data.channels is {channels}, and the file has {bands} bands; set data.channels: {bands}")


def _array(image: Image.Image, name: str, pixel_limit: int, bits: int | None, channels: int, depth: int) -> np.ndarray:
    width, height = image.size
    if width * height > pixel_limit:
        raise DataError(f"{name}: {width} × {height} pixels, more than pixel_limit = {pixel_limit:,}")
    wide = is_wide(image)
    bits = bits or declared_bits(image)
    if wide and depth == 16:
        return deep_pixels(image, name, bits, channels)
    values = color_values(image) if wide and bits < 16 else None  # before load(), which keeps 8 bits of each
    bands = four_bands(image) if channels == 4 else None
    image.load()
    orientation = orientation_of(image)  # after load(), which rotates a TIFF and removes its tag
    if bands is not None:
        image = Image.fromarray(bands if bands.dtype == np.uint8 else eight_bits(bands, bits))
    elif values is not None:
        image = Image.fromarray(eight_bits(values, bits))
    elif wide and image.mode.startswith("I"):
        gray = eight_bits(gray_values(image, name), bits)
        alpha = transparent_alpha(image)
        image = Image.fromarray(gray)
        if alpha is not None:
            image = Image.merge("LA", (image, Image.fromarray(alpha)))
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: 32-bit pixels (mode {image.mode}) have no defined range; store 8 or 16 bits")
    pixels = oriented(np.array(_with_bands(image, channels, name)), orientation)
    return widened(pixels[:, :, None] if channels == 1 else pixels, depth)


def _with_bands(image: Image.Image, channels: int, name: str) -> Image.Image:
    """Gray, gray and alpha, RGB or RGBA."""
    if image.mode == "La":
        image = image.convert("LA")
    elif image.mode in ("LAB", "HSV", "YCbCr"):  # Pillow converts these to RGB alone
        image = image.convert("RGB")
    if channels in (1, 3):
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba)
        return image.convert("L" if channels == 1 else "RGB")
    if channels == 2:
        return image.convert("RGBA").convert("LA")
    if channels == 4:
        return image.convert("RGBA")
    raise few_bands(name, channels, f"{len(image.getbands())} ({image.mode})")
