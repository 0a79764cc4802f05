"""The same picture, stored in every way that real files are."""

from io import BytesIO

import numpy as np
import pytest
from encoded_images import H, W, encoded, picture, stored
from PIL import Image

from distill.data.decode import decode


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, form: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(stored(picture(), orientation)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    assert np.array_equal(decode(encoded(image, form, exif=exif, **options), "x"), picture())


def test_a_broken_exif_block_turns_nothing() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode(data, "x").shape == (H, W, 3)


def test_gray_and_bilevel() -> None:
    gray = picture()[..., 0]
    assert np.array_equal(decode(encoded(Image.fromarray(gray)), "x"), np.repeat(gray[..., None], 3, 2))
    bits = Image.fromarray(gray > 90)
    assert bits.mode == "1"
    assert np.array_equal(decode(encoded(bits), "x")[..., 1], np.where(gray > 90, 255, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_white(mode: str) -> None:
    alpha = np.zeros((H, W), np.uint8)
    alpha[:, 3:6], alpha[:, 6:] = 128, 255
    image = Image.fromarray(picture()).convert(mode[:-1])
    opaque = np.asarray(image.convert("RGB")).astype(float)
    image.putalpha(Image.fromarray(alpha))
    expected = opaque * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None]
    assert np.abs(decode(encoded(image), "x") - expected).max() <= 1


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(picture()).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(encoded(image), "x"), expected)
    clear = int(np.asarray(image)[0, 0])
    mask = np.asarray(image) == clear
    expected = np.where(mask[..., None], 255, expected)
    for form in ("PNG", "GIF"):
        assert np.array_equal(decode(encoded(image, form, transparency=clear), "x"), expected), form


def test_a_transparent_color() -> None:
    data = encoded(Image.fromarray(picture()), transparency=tuple(int(v) for v in picture()[2, 3]))
    expected = picture()
    expected[2, 3] = 255
    assert np.array_equal(decode(data, "x"), expected)


def test_cmyk_and_ycck() -> None:
    plain = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    data = encoded(Image.fromarray(plain).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data, "cmyk").astype(int) - plain).max() <= 4
    assert b"Adobe" in data[:200]
    at = data.index(b"Adobe") + 11  # the transform byte: 0 CMYK, 2 YCCK
    ycck = data[:at] + b"\2" + data[at + 1 :]
    shown = decode(ycck, "ycck")
    with Image.open(BytesIO(ycck)) as image:
        assert image.mode == "CMYK"
        assert np.array_equal(shown, np.asarray(image.convert("RGB")))
    assert not np.array_equal(shown, decode(data, "cmyk"))


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(picture()), Image.fromarray(255 - picture())]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decode(data, "x"), picture())
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(decode(data, "x").astype(int) - picture()).mean() < 30


def test_bytes_path_and_pil_agree(tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(picture())))
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        assert np.array_equal(decode(source, "x"), picture())
