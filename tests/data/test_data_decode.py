"""The same picture, stored in every way that real files are."""

import os
import struct
import subprocess
import sys
import time
import zlib
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from distill.data.base import DataError
from distill.data.canvas import PADDING, Canvas
from distill.data.decode import decode
from distill.data.depth import bits_in_use
from distill.data.formats import extensions, readable_formats, unreadable_because

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


HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAAAERA"
    "AAEAAQAAAAABoAABAAAAAAAAADIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADcaXBjbwAA"
    "AHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "rprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAEAAAAAEAAAAQ"
    "AAAAAf///9AAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAOm1kYXQAAAAuKAGvEyFiY0D1JyL//v+6"
    "f/CLJ/0r2WFncrrBW/L6wPZkm8DzqpGegIdppzAVeA=="
)


def test_heic_and_jfif(tmp_path) -> None:
    assert {".heic", ".jfif", ".webp", ".qoi", ".tga"} <= extensions() and not {".eps", ".pdf"} & extensions()
    image = decode(b64decode(HEIC), "a.heic")
    assert image.shape == (16, 16, 3) and np.abs(image.astype(int) - (200, 60, 30)).max() < 8
    data = encoded(Image.fromarray(picture()), "JPEG", quality=100, subsampling=0)
    (tmp_path / "a.jfif").write_bytes(data)
    assert np.abs(decode(tmp_path / "a.jfif", "a.jfif").astype(int) - picture()).max() < 8


def test_heic_without_the_plugin(monkeypatch) -> None:
    known = tuple(form for form in readable_formats() if form != "HEIF")
    monkeypatch.setattr("distill.data.formats.readable_formats", lambda: known)
    extensions.cache_clear()
    try:
        assert ".heic" not in extensions()
        assert (
            unreadable_because("x/1.HEIC") == ".heic (needs a plug-in of Pillow: pip install pi-heif, or pillow-heif)"
        )
        with pytest.raises(DataError, match=r"a\.heic: not an image that can be read \(\.heic \(needs a plug-in"):
            decode(b64decode(HEIC), "a.heic")
    finally:
        extensions.cache_clear()


def test_a_format_without_signature_is_tried_by_its_extension_only() -> None:
    data = encoded(Image.fromarray(picture()), "TGA")
    assert np.array_equal(decode(data, "a.tga"), picture())
    with pytest.raises(DataError, match="not an image"):
        decode(data, "a.png")


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


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_files_are_named(form: str, tmp_path) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.img"):
        decode(path, str(path))


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "an empty file"), (b"hello", "not an image"), (b"%!PS-Adobe-3.0 EPSF", "not an image")]
)
def test_what_is_no_image_is_named(data: bytes, reason: str, tmp_path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(DataError, match=f"a.jpg: {reason}"):
            decode(source, "a.jpg")


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(DataError, match=r"gone\.jpg: no such file"):
        decode(tmp_path / "gone.jpg", "gone.jpg")
    with pytest.raises(DataError, match=r"folder\.jpg"):
        decode(tmp_path, "folder.jpg")


def test_a_pixel_type_without_a_range_is_refused() -> None:
    with pytest.raises(DataError, match="32-bit"):
        decode(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x")


@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow warns of the first and refuses the second itself: 1.2 GB
def test_a_bomb_is_refused_before_decoding(side: int, tmp_path) -> None:
    bomb = png(struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0), bytes((1 + side // 8) * side))
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    assert len(bomb) < 60_000
    code = (
        "import resource, sys\nfrom distill.data.decode import decode\nfrom distill.data.base import DataError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(sys.argv[1], 'bomb.png')\n"
        "except DataError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    message, kilobytes = shown.stdout.splitlines()
    assert message.startswith("bomb.png: ") and "more than pixel_limit = 50,000,000" in message
    assert int(kilobytes) < 20_000
    started = time.perf_counter()
    with pytest.raises(DataError, match="pixel_limit"):
        decode(bomb, "bomb.png", pixel_limit=100)
    assert time.perf_counter() - started < 1


def test_the_limit_is_inclusive() -> None:
    data = encoded(Image.fromarray(picture()))
    assert decode(data, "x", pixel_limit=H * W).shape == (H, W, 3)
    with pytest.raises(DataError, match=r"x: 10 × 6 pixels, more than pixel_limit = 59"):
        decode(data, "x", pixel_limit=H * W - 1)


def test_canvas_keeps_what_fits() -> None:
    square = picture()[:, 2:8]
    assert Canvas((6, 6))(square) is square
    assert np.array_equal(Canvas((6, 6), "crop")(picture()), square)
    padded = Canvas((W, W), "pad")(picture())
    assert np.array_equal(padded[2:8], picture()) and (padded[[0, 1, 8, 9]] == PADDING).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (37, 53), (500, 400)])
def test_canvas_has_a_fixed_shape(fit: str, shape: tuple[int, int]) -> None:
    canvas = Canvas((32, 32), fit)(np.full((*shape, 3), 77, np.uint8))  # type: ignore[arg-type]
    assert canvas.shape == (32, 32, 3) and canvas.dtype == np.uint8
    assert (canvas[15:17, 15:17] == 77).any()


def test_crop_is_resize_of_the_short_side_and_center_crop() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (10, 16, 3), dtype=np.uint8)).resize((160, 100))
    plain = smooth.resize((64, 40), Image.Resampling.BICUBIC).crop((12, 0, 52, 40))
    assert np.abs(Canvas((40, 40))(np.asarray(smooth)).astype(int) - np.asarray(plain)).max() <= 1
