"""One picture, stored in the ways that real files are."""

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

H, W = 6, 10


def picture() -> np.ndarray:
    """A smooth picture without symmetry."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([20 * x, 30 * y, 10 * (x + y)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(header: bytes, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its header's fields and unfiltered rows: for kinds that Pillow reads but does not write."""
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def stored(array: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera that tags orientation ``orientation`` stores ``array``: the inverse of what EXIF 2.3 says to do."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](array)
