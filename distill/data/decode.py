"""The decoder of all sources: bytes, a path or a PIL image → uint8 RGB [H, W, 3].

The same picture gives the same pixels in every file format:

- EXIF orientation is applied (a broken EXIF block counts as none); of an animation, the first frame is used;
- transparency (RGBA, LA, palette or a transparent color) is composited on white, as in a browser;
- 16-bit gray keeps its high byte, as Pillow does for 16-bit RGB, so both give the same 8-bit picture;
- CMYK and YCCK are converted without a color profile; embedded ICC profiles are ignored, as is usual in training.

The size in the header is checked before decoding, since a file of a few kB can declare gigabytes of pixels.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.base import DataError

PIXEL_LIMIT = 50_000_000
"""Default limit of width × height; 150 MB as RGB."""
MAX_PIXEL_LIMIT = 2 * 89_478_485
"""Pillow raises an error for larger images."""
BACKGROUND = (255, 255, 255)

EXTENSIONS = frozenset(
    [".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".avif"]
)
"""File extensions of images."""
_FORMATS = ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"]
# A fixed list, since Pillow also opens formats that run other programs (EPS).

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


def decode(source: bytes | str | Path | Image.Image, name: str, pixel_limit: int = PIXEL_LIMIT) -> np.ndarray:
    """The image as RGB.

    Args:
        source: an encoded image, its path, or an opened PIL image.
        name: its path or sample id, for errors.
        pixel_limit: largest width × height, at most ``MAX_PIXEL_LIMIT``.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DataError: missing, empty, truncated or corrupt, no image, too large, or a pixel type without a defined range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large or unusual files; errors are raised below
            if isinstance(source, Image.Image):
                return _rgb(source, name, pixel_limit)
            file = BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=_known_formats()) as image:
                return _rgb(image, name, pixel_limit)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more than pixel_limit = {pixel_limit:,} pixels ({error})") from error
    except Image.UnidentifiedImageError as error:
        empty = source == b"" or (isinstance(source, str | Path) and Path(source).stat().st_size == 0)
        raise DataError(f"{name}: {'an empty file' if empty else 'not an image that can be read'}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ValueError and more
        raise DataError(f"{name}: cannot be decoded: {error}") from error


@lru_cache(maxsize=1)
def _known_formats() -> list[str]:
    """Those of ``_FORMATS`` that this build of Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _rgb(image: Image.Image, name: str, pixel_limit: int) -> np.ndarray:
    width, height = image.size
    if width * height > pixel_limit:
        raise DataError(f"{name}: {width} × {height} pixels, more than pixel_limit = {pixel_limit:,}")
    image.load()
    orientation = _orientation(image)  # after load(), which rotates a TIFF and removes its tag
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 16 bits
        image = _eight_bit(image)
    if image.mode in ("I", "F"):
        raise DataError(f"{name}: 32-bit pixels (mode {image.mode}) have no defined range; store 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba)
    image = image.convert("RGB")
    if orientation in _TURN:
        image = image.transpose(_TURN[orientation])
    return np.array(image)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # the EXIF block is broken; the pixels may still be valid
        return 1


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit gray → 8-bit gray, its transparent value (if any) → alpha."""
    values = np.asarray(image)
    gray = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return gray
    return Image.merge("LA", (gray, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))
