"""``.npy`` arrays and TIFFs of many bands, as files of a folder and in the decoder."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from encoded_images import encoded, picture
from many_bands import tiff
from PIL import Image

from distill.data.arrays import oriented
from distill.data.base import DataError
from distill.data.decode import decode
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder

NOISE = np.random.default_rng(0)


def npy(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize("channels", range(1, 13))
def test_arrays_have_one_to_twelve_channels(channels: int) -> None:
    pixels = NOISE.integers(0, 65536, (5, 20, channels)).astype(np.uint16)
    assert np.array_equal(decode(npy(pixels), "x.npy", channels=channels, depth=16), pixels)
    assert np.array_equal(decode(npy(pixels), "x.npy", channels=channels), (pixels >> 8).astype(np.uint8))
    assert np.array_equal(decode(npy(pixels.transpose(2, 0, 1)), "x.npy", channels=channels, depth=16), pixels)
    small = pixels.astype(np.uint8)
    assert np.array_equal(decode(npy(small), "x.npy", channels=channels), small)
    assert np.array_equal(decode(npy(small), "x.npy", channels=channels, depth=16) // 257, small)
    if channels == 1:
        assert np.array_equal(decode(npy(pixels[..., 0]), "x.npy", channels=1, depth=16), pixels)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("depth", [8, 16])
def test_floats_from_zero_to_one(kind: type, depth: int) -> None:
    values = np.append(NOISE.random((5, 7, 6)), np.zeros((1, 7, 6)), 0).astype(kind)
    pixels = decode(npy(values), "x.npy", channels=6, depth=depth)
    assert pixels.dtype == f"uint{depth}" and np.abs(pixels / (2**depth - 1) - values).max() <= 0.5 / (2**depth - 1)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.full((4, 4), 1.5), r"values from 1\.5 to 1\.5; an array of float64 holds values from 0 to 1"),
        (np.full((4, 4), -0.1), r"values from -0\.1 to -0\.1"),
        (np.array([[0.5, np.nan]]), "values from nan to nan"),
        (np.zeros((4, 4), np.int64), "an array of int64; images are uint8, uint16 or floats"),
        (np.zeros((4, 4), complex), "an array of complex128"),
        (np.array([object()]), "not an array that can be read: no array, or one of Python objects"),
        (np.zeros((4, 4, 3)), r"an array \[4, 4, 3\], and data\.channels is 1"),
        (np.zeros(2048), r"an array \[2048\], and data\.channels is 1"),
        (np.zeros((0, 4)), r"an array \[0, 4\]"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_other_arrays_are_named(array: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=f"x.npy: {reason}"):
        decode(npy(array), "x.npy", channels=1)


def test_no_array_none_and_too_large(tmp_path: Path) -> None:
    for data, reason in ((b"", "not an array that can be read"), (b"text", "no array, or one of Python objects")):
        (tmp_path / "x.npy").write_bytes(data)
        for source in (data, tmp_path / "x.npy"):
            with pytest.raises(DataError, match=f"x.npy: .*{reason}"):
                decode(source, "x.npy")
    with pytest.raises(DataError, match=r"x\.npy: no such file"):
        decode(tmp_path / "gone.npy", "x.npy")
    with pytest.raises(DataError, match="200 × 100 pixels, more than pixel_limit"):
        decode(npy(np.zeros((100, 200, 3), np.uint8)), "x.npy", pixel_limit=19_999)


def folder_of(root: Path, channels: int) -> ExperimentData:
    settings = {"size": 8, "batch_size": 3, "workers": 0, "channels": channels, "val_fraction": 0}
    return ExperimentData(DataSettings(source=Folder.Settings(root=root), **settings))


def test_a_folder_of_arrays(tmp_path: Path) -> None:
    pixels = NOISE.integers(0, 4096, (3, 8, 8, 7)).astype(np.uint16)
    for number, label in enumerate("aab"):
        (tmp_path / label).mkdir(exist_ok=True)
        np.save(tmp_path / label / f"{number}.npy", pixels[number])
    data = folder_of(tmp_path, 7)
    images = data.eval_batch("train", [0, 1, 2]).images
    assert data.source.bits == 12 and images.shape == (3, 7, 8, 8)
    assert np.abs(images.numpy().transpose(0, 2, 3, 1) / 65535 - pixels / 4095).max() < 1e-5
    Image.fromarray(picture()).save(tmp_path / "a" / "picture.png")
    beside = Folder(Folder.Settings(root=tmp_path / "a", labels=False))
    assert beside.split("train").ids == ["picture.png"], "arrays beside images are no images"
    assert [str(each) for each in beside.skipped] == ["2 × an array beside image files: 0.npy …"]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [5, 12])
def test_tiffs_of_many_bands(channels: int, kind: type, planar: bool, tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    pixels = NOISE.integers(0, np.iinfo(kind).max, (6, 9, channels), endpoint=True).astype(kind)
    depth = 8 * pixels.dtype.itemsize
    assert np.array_equal(decode(tiff(pixels, planar), "x.tif", channels=channels, depth=depth), pixels)
    (tmp_path / "x.tif").write_bytes(tiff(pixels, planar))
    assert np.array_equal(decode(tmp_path / "x.tif", "x.tif", channels=channels, depth=depth), pixels)
    with pytest.raises(DataError, match=f"data.channels is 3, and the file has {channels} bands; set data.channels"):
        decode(tmp_path / "x.tif", "x.tif")
    with pytest.raises(DataError, match=rf"x.tif: an array \[6, 9, {channels}\], and data.channels is 7"):
        decode(tmp_path / "x.tif", "x.tif", channels=7)
    with pytest.raises(DataError, match="9 × 6 pixels, more than pixel_limit"):
        decode(tmp_path / "x.tif", "x.tif", channels=channels, pixel_limit=53)
    with pytest.raises(DataError, match=r"x\.tif: cannot be decoded"):
        decode(tiff(pixels, planar)[:-20], "x.tif", channels=channels)


def test_a_folder_of_tiffs_of_many_bands(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    for number, label in enumerate("aab"):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{number}.tif").write_bytes(tiff(np.full((8, 8, 6), 1000 * number, np.uint16)))
    data = folder_of(tmp_path, 6)
    assert data.source.bits == 12 and "read as 12-bit" in data.source.reading
    assert data.eval_batch("train", [2]).images[0, 5, 0, 0] == round(2000 * 65535 / 4095)
    with pytest.raises(DataError, match=r"the file has 6 bands; set data\.channels: 6"):
        folder_of(tmp_path, 3).eval_batch("train", [2])


def test_without_tifffile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(DataError, match=r"x\.tif: a TIFF .* needs tifffile: pip install 'delta-distill\[tiff\]'"):
        decode(tiff(np.zeros((4, 4, 5), np.uint8)), "x.tif", channels=5)
    with pytest.raises(DataError, match=r"data\.channels is 5, and the file has 3 \(RGB\); more than four channels"):
        decode(encoded(Image.fromarray(picture())), "x.png", channels=5)


def test_orientations_are_those_of_pillow() -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        image = Image.fromarray(picture())
        image.getexif()[0x0112] = orientation
        turned = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(oriented(picture(), orientation), turned)
