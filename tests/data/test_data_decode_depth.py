"""Images of more than 8 bits: read with the bits in use, as 8 or as 16."""

import struct

import numpy as np
import pytest
from encoded_images import H, W, encoded, picture, png
from PIL import Image

from distill.data.base import DataError
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import decode


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(form: str) -> None:
    wide = (picture()[..., 0].astype(np.uint16) << 8) | 0x7F
    assert np.array_equal(decode(encoded(Image.fromarray(wide), form), "x")[..., 2], picture()[..., 0])


def test_sixteen_bits_gray_equals_sixteen_bits_rgb() -> None:
    values = np.linspace(0, 65535, H * W).astype(">u2").reshape(H, W)

    def rows(array: np.ndarray) -> bytes:
        return b"".join(b"\0" + row.tobytes() for row in array)

    gray = png(struct.pack(">IIBBBBB", W, H, 16, 0, 0, 0, 0), rows(values))
    rgb = png(struct.pack(">IIBBBBB", W, H, 16, 2, 0, 0, 0), rows(np.repeat(values[..., None], 3, 2)))
    assert np.array_equal(decode(gray, "gray"), decode(rgb, "rgb"))
    assert decode(gray, "gray")[0, 0, 0] == 0 and decode(gray, "gray")[-1, -1, 0] == 255
    clear = png(struct.pack(">IIBBBBB", W, H, 16, 0, 0, 0, 0), rows(values), (b"tRNS", values[0, 0].tobytes()))
    assert decode(clear, "clear")[0, 0].tolist() == [255, 255, 255]
    assert np.array_equal(decode(clear, "clear")[1:], decode(gray, "gray")[1:])


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits, gray [H, W] or color [H, W, 3]."""
    big = values.astype(">u2").reshape(len(values), -1)
    color = 2 if values.ndim == 3 else 0
    height, width = values.shape[:2]
    return png(
        struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0), b"".join(b"\0" + row.tobytes() for row in big)
    )


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_in_use(bits: int, tmp_path) -> None:
    gray = (picture()[..., 0].astype(np.uint16) << (bits - 8)) | ((1 << (bits - 8)) - 1)
    color = (picture().astype(np.uint16) << (bits - 8)) | ((1 << (bits - 8)) - 1)
    assert np.array_equal(decode(deep_png(gray), "x", bits=bits)[..., 1], picture()[..., 0])
    assert np.array_equal(decode(deep_png(color), "x", bits=bits), picture())
    tiff = encoded(Image.fromarray(gray), "TIFF")
    assert np.array_equal(decode(tiff, "x", bits=bits)[..., 1], picture()[..., 0])
    path = tmp_path / "a.png"
    path.write_bytes(deep_png(color))
    assert np.array_equal(decode(path, "a.png", bits=bits), picture())


def test_values_above_the_bits_in_use_are_white() -> None:
    values = np.array([[0, 1024, 4095, 5000, 65535]] * 2, np.uint16)
    assert decode(deep_png(values), "x", bits=12)[0, :, 0].tolist() == [0, 64, 255, 255, 255]
    assert decode(deep_png(np.stack([values] * 3, 2)), "x", bits=12)[0, :, 2].tolist() == [0, 64, 255, 255, 255]


def test_twelve_bits_that_a_tiff_declares() -> None:
    rows = b"\xff\xf8\x00" * 2  # 4095 and 2048, packed, twice
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, 2)]
    tags.append((279, 4, len(rows)))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    body = b"II*\0" + struct.pack("<I", 8 + len(rows)) + rows + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert decode(body, "x")[..., 0].tolist() == [[255, 128], [255, 128]]


def test_signed_values_within_sixteen_bits() -> None:
    values = np.array([[0, 70], [4095, 2048]], np.int32)
    assert decode(encoded(Image.fromarray(values), "TIFF"), "x", bits=12)[..., 0].tolist() == [[0, 4], [255, 128]]
    with pytest.raises(DataError, match="x: values from -1 to 4095 have no defined range"):
        decode(encoded(Image.fromarray(np.array([[-1, 4095]], np.int32)), "TIFF"), "x")


def test_bits_of_a_source_are_the_largest_of_its_images() -> None:
    dark, bright, plain = (deep_png(np.full((4, 4), value, np.uint16)) for value in (200, 4000, 0))
    eight = encoded(Image.fromarray(picture()))

    def chosen(*files: bytes) -> int | None:
        return bits_in_use([f"{index}.png" for index in range(len(files))], files.__getitem__)

    assert chosen(dark, bright, plain) == 12 and chosen(dark) == 8 and chosen(eight, eight) is None
    assert chosen(eight, bright, b"broken") == 12 and chosen(deep_png(np.full((4, 4, 3), 5000, np.uint16))) == 14
    assert chosen() is None and bits_in_use(["1.jpg"], lambda index: bright) is None
