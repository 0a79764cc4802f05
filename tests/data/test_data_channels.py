"""Images of other than three channels: their canvas, and what a source may return."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_source import toy

from distill.data.base import DataError
from distill.data.canvas import PADDING, Canvas
from distill.data.decode import decode
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.huggingface import HuggingFace


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_each_channel_is_resized_by_itself(fit: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, channels), dtype=np.uint8)
    canvas = Canvas.of_training(16, fit, image.shape[2])(image)
    assert canvas.shape == (16, 16, channels) and canvas.dtype == np.uint8
    for channel in range(channels):
        alone = Canvas((16, 16), fit)(np.repeat(image[:, :, channel : channel + 1], 3, 2))
        rows = slice(2, 14) if fit == "pad" else slice(None)
        assert np.array_equal(canvas[rows, :, channel], alone[rows, :, 0])
        if fit == "pad":
            assert (canvas[:2, :, channel] == PADDING[channel % 3]).all()


@pytest.mark.parametrize("on_device", [False, True])
def test_batches_have_the_channels(on_device: bool) -> None:
    settings = DataSettings(source="digits", size=8, batch_size=4, workers=0, channels=1, on_device=on_device)
    data = ExperimentData(settings)
    gray = next(iter(data.train_loader())).images
    color = next(iter(ExperimentData(settings.model_copy(update={"channels": 3})).train_loader())).images
    assert gray.shape == (4, 1, 8, 8) and (color == gray).all()


def test_another_number_of_channels_is_an_error() -> None:
    data = toy(channels=4)
    with pytest.raises(DataError, match=r"returned uint8 \[8, 8, 3\], expected uint8 \[H, W, 4\] \(data\.channels\)"):
        next(iter(data.train_loader()))


# --- Files --------------------------------------------------------------------------------------------------------

COLOR = np.array([[[250, 10, 20, 255], [0, 200, 0, 128]], [[9, 9, 9, 0], [1, 2, 3, 255]]], np.uint8)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def test_the_decoder_keeps_the_channels_that_are_asked_for() -> None:
    rgba, gray = Image.fromarray(COLOR), Image.fromarray(COLOR[..., 0])
    assert np.array_equal(decode(encoded(rgba), "x", channels=4), COLOR), "not composited"
    assert np.array_equal(decode(encoded(rgba.convert("RGB")), "x", channels=4)[..., 3], np.full((2, 2), 255))
    white = decode(encoded(rgba), "x")
    assert np.array_equal(decode(encoded(rgba), "x", channels=1)[..., 0], np.array(Image.fromarray(white).convert("L")))
    assert np.array_equal(decode(encoded(gray), "x", channels=1), COLOR[..., :1])
    assert np.array_equal(decode(encoded(rgba.convert("LA")), "x", channels=2)[..., 1], COLOR[..., 3])
    wide = Image.fromarray((COLOR[..., 0].astype(np.uint16) << 8) + 7)
    assert np.array_equal(decode(encoded(wide), "x", channels=1), COLOR[..., :1])
    assert np.array_equal(decode(encoded(wide), "x", channels=4)[..., 2], COLOR[..., 0])
    bands = encoded(Image.frombytes("RGBX", (2, 2), COLOR.tobytes()), "TIFF")
    assert np.array_equal(decode(bands, "x", channels=4), COLOR), "the fourth band of a TIFF, such as infrared"
    assert np.array_equal(decode(bands, "x"), COLOR[..., :3])
    with pytest.raises(DataError, match=r"x: data\.channels is 7, and the file has 4 \(RGBA\); more than four"):
        decode(encoded(rgba), "x", channels=7)


def test_every_reader_of_files_gives_the_channels(tmp_path: Path) -> None:
    import datasets

    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "root" / name).parent.mkdir(parents=True)
        (tmp_path / "root" / name).write_bytes(encoded(Image.fromarray(COLOR)))
    rows = {"image": [{"bytes": encoded(Image.fromarray(COLOR)), "path": None}] * 2, "label": ["a", "b"]}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "train.parquet")
    files = {"train": str(tmp_path / "train.parquet")}
    sources = [
        {"type": "folder", "root": tmp_path / "root"},
        {"type": "timm", "root": tmp_path / "root"},
        {"type": "torchvision", "name": "FakeData", "arguments": {"size": 2, "image_size": [3, 8, 8]}},
        {"type": "huggingface", "data_files": files, "cache_dir": tmp_path / "cache"},
    ]
    for source in sources:
        for channels in (1, 4):
            settings = {"size": 8, "batch_size": 2, "workers": 0, "channels": channels, "val_fraction": 0}
            data = ExperimentData(DataSettings(source=source, **settings))
            assert data.eval_batch("train", [0, 1]).images.shape == (2, channels, 8, 8), source


def test_parquet_of_sixteen_bits_is_read_by_the_bits_in_use(tmp_path: Path) -> None:
    import datasets

    deep = [Image.fromarray(np.full((4, 4), value, np.uint16)) for value in (0, 1024, 4095)]
    rows = {"image": [{"bytes": encoded(image), "path": None} for image in deep], "label": [0, 1, 1]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "train.parquet")
    given = {"data_files": {"train": str(tmp_path / "train.parquet")}, "cache_dir": tmp_path / "cache"}
    for bits, values in ((None, [0, 16388, 65535]), (16, [0, 1024, 4095])):
        train = HuggingFace(HuggingFace.Settings(bits=bits, **given)).split("train")
        assert [train[row].image[0, 0, 0] for row in range(3)] == values


def test_parquet_of_arrays_has_any_number_of_channels(tmp_path: Path) -> None:
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (3, 7, 5, 6), dtype=np.uint8)
    given = {"cache_dir": tmp_path / "cache", "data_files": {"train": str(tmp_path / "train.parquet")}}
    for shape, arrays in (((5, 6, 7), pixels.transpose(0, 2, 3, 1)), ((7, 5, 6), pixels)):
        kinds = {"bands": datasets.Array3D(shape, "uint8"), "label": datasets.Value("int64")}
        table = datasets.Dataset.from_dict({"bands": list(arrays), "label": [0, 1, 1]}, datasets.Features(kinds))
        table.to_parquet(tmp_path / "train.parquet")
        settings = {"size": 8, "batch_size": 3, "workers": 0, "channels": 7, "val_fraction": 0}
        data = ExperimentData(DataSettings(source={"type": "huggingface", **given}, **settings))
        assert data.eval_batch("train", [0, 1, 2]).images.shape == (3, 7, 8, 8)
        assert np.array_equal(data.subset("train")[2].image, pixels[2].transpose(1, 2, 0))
        assert data.fingerprint() and data.subset("train").ids[1] == "train/000001"
    with pytest.raises(DataError, match=r"train/000000: an array \[7, 5, 6\], and data\.channels is 3"):
        HuggingFace(HuggingFace.Settings(**given)).split("train")[0]
    kinds["bands"] = datasets.Array3D((7, 5, 6), "float32")
    datasets.Dataset.from_dict({"bands": list(pixels / 255), "label": [0, 1, 1]}, datasets.Features(kinds)).to_parquet(
        tmp_path / "train.parquet"
    )
    data = ExperimentData(DataSettings(source={"type": "huggingface", **given}, **settings))
    floats = data.subset("train")[2].image
    assert floats.dtype == np.uint16 and np.array_equal(floats, 257 * pixels[2].transpose(1, 2, 0).astype(np.uint16))
    kinds["bands"] = datasets.Array3D((7, 5, 6), "int64")
    datasets.Dataset.from_dict({"bands": list(pixels), "label": [0, 1, 1]}, datasets.Features(kinds)).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(DataError, match="train/000000: an array of int64; images are uint8, uint16 or floats"):
        ExperimentData(DataSettings(source={"type": "huggingface", **given}, **settings)).subset("train")[0]
