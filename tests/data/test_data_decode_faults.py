"""Files that cannot be read are named, and too large ones are refused before decoding."""

import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from encoded_images import H, W, encoded, picture, png
from PIL import Image

from distill.data.base import DataError
from distill.data.decode import decode


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


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS; run git lfs pull"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "a web page or XML; was the download refused"),
        (b"<svg xmlns='x'/>", r"its content is \.svg \(a vector graphic"),
        (b"\x93NUMPY\x01", r"its content is \.npy \(an array; give the file this extension"),
        (b"\0\0\0\x18ftypmp42", r"its content is \.mp4 \(a video"),
    ],
)
def test_what_a_file_is_instead_of_an_image_is_told(data: bytes, what: str) -> None:
    with pytest.raises(DataError, match=f"a.jpg: not an image that can be read: .*{what}"):
        decode(data, "a.jpg")
