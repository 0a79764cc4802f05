"""What ``distill data`` finds, prints and draws; and the opening lines of a run."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from toy_source import toy

from distill.commands.data import show_data
from distill.config import validate_tree
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder
from distill.data.inspection import inspect
from distill.data.samples_sheet import samples_sheet
from distill.data.summary import counts_line, detail_lines, epoch_line


def picture(seed: int, width: int = 12, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes; one picture of train is in test as another format, one twice in train with two labels."""
    files = {"train/a/1.png": 1, "train/a/2.png": 2, "train/b/3.png": 3, "train/b/2.bmp": 2, "test/a/1.tiff": 1}
    files |= {"test/b/5.png": 5, "val/a/6.png": 6, "val/b/7.png": 7, "train/a/8.png": 8}
    for name, seed in files.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(seed, *((40, 30) if seed == 3 else (12, 8))).save(path)
    (tmp_path / "set/train/b/broken.png").write_bytes(b"no image")
    (tmp_path / "set/train/b/photo.raw").touch()
    return tmp_path / "set"


def folder_data(root: Path, **settings: Any) -> ExperimentData:
    return ExperimentData(DataSettings(source=Folder.Settings(root=root), size=16, workers=0, batch_size=4, **settings))


def test_equal_pictures_are_found_by_content(root: Path) -> None:
    advanced: list[int] = []
    inspection = inspect(folder_data(root), advanced.append)
    shared = inspection.shared()
    assert list(shared) == [("train", "test")]
    assert [[place.id for place in group] for group in shared["train", "test"]] == [["train/a/1.png", "test/a/1.tiff"]]
    repeated = [["train/a/2.png", "train/b/2.bmp"]]
    assert [[place.id for place in group] for group in inspection.repeated()] == repeated
    assert [[place.id for place in group] for group in inspection.contradictory()] == repeated
    assert list(inspection.splits["train"].unreadable) == ["train/b/broken.png"]
    assert sorted(map(tuple, inspection.splits["train"].sizes.tolist())) == [(12, 8)] * 4 + [(40, 30)]
    assert sum(advanced) == 10


def test_pictures_of_another_shape_are_not_equal(tmp_path: Path) -> None:
    for name, shape in (("a", (4, 9)), ("b", (9, 4))):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / name / "1.png")
    assert not inspect(folder_data(tmp_path, val_fraction=0)).equal


def shown(root: Path, **options: Any) -> str:
    tree = {
        "name": "look",
        "data": {"source": {"type": "folder", "root": str(root)}, "batch_size": 4, "size": 16, "workers": 0},
        "teacher": {"networks": [{"model": "test_efficientnet", "pretrained": False}]},
        "student": {"network": {"model": "test_efficientnet", "pretrained": False}},
        "objectives": [{"type": "ce"}, {"type": "kd"}],
    }
    console = Console(record=True, width=160, file=io.StringIO())
    show_data(validate_tree(tree, "test"), console, **{"to": None, "images": 3, "decode": True, **options})
    return console.export_text()


def test_the_command(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "new/samples.png"
    text = shown(root, to=to)
    for line in (
        "6 training images, 2 for validation, 2 for test, 2 classes",
        f"{root}: train is train, val is val, test is test",
        "labeled training images of each class: a: 3, b: 3",
        "an epoch: 2 batches of 4, with all 6 images; 2 come twice, other ones each time, to fill the last batch\n",
        "not read: 1 × .raw (not a format of Pillow; convert it to PNG or TIFF): train/b/photo.raw",
        "broken.png: not an image that can be read",
        "train: 4 of 5 images have a side below data.size 16",
        "train and test share 1 picture:\n  train/a/1.png = test/a/1.tiff\n",
        "1 picture more than once in a split:\n  train/a/2.png = train/b/2.bmp\n",
        "1 picture with different labels:\n  train/a/2.png = train/b/2.bmp\n",
        f"wrote {to}",
    ):
        assert line in text, line
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    assert ["train", "6", "6", "2", "1", "12×8", "12×8", "40×30"] in rows and ["a", "3", "1", "1"] in rows
    with Image.open(to) as sheet:
        assert sheet.format == "PNG" and sheet.width > 3 * 3 * 96 and sheet.height > 2 * 96


def test_without_decoding(root: Path) -> None:
    text = shown(root, decode=False)
    assert "6 training images" in text and "share" not in text and "unreadable" not in text


def test_a_test_split_without_labels_is_told(root: Path) -> None:
    for label in "ab":
        for path in (root / "test" / label).iterdir():
            path.rename(root / "test" / path.name)
        (root / "test" / label).rmdir()
    assert counts_line(folder_data(root)).startswith("6 training images, 2 for validation, 2 for test without labels")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels(channels: int, root: Path) -> None:
    data = folder_data(root, channels=channels)
    assert samples_sheet(data, ["train", "test"], 1).getcolors(8) is None, "pictures, not only text"
    assert list(inspect(data).shared()) == [("train", "test")]


def test_any_source() -> None:
    data = toy(class_count=60, samples=130, splits=("train", "test"), labels_per_class=1)
    assert counts_line(data).startswith("117 training images, 60 of them labeled, 13 for validation, 130 for test, 60")
    assert "labeled training images of each class: 1" in detail_lines(data)
    uneven = "\n".join(detail_lines(toy(class_count=60, samples=130)))
    assert re.search(r"images of each class: 2 \(class \d+\) to \d \(class \d+\)$", uneven, re.M), uneven
    sheet = samples_sheet(data, ["train", "val"], 2)
    assert sheet.height > 24 * 96 and len(sheet.getcolors(1 << 20) or []) > 24


def test_the_batches_of_an_epoch_are_told() -> None:
    line = "an epoch: 6 batches of 8, with all 41 images; 7 come twice, other ones each time, to fill the last batch"
    assert line in detail_lines(toy(samples=41, batch_size=8))
    assert epoch_line(toy(samples=40, batch_size=8)) == "an epoch: 5 batches of 8, with all 40 images"
    assert epoch_line(toy(samples=5, batch_size=8)) == "an epoch: 1 batch of 5, with all 5 images"
    assert "2 batches of 4, with all 5 images; 3 come twice" in epoch_line(toy(samples=5, batch_size=8, world_size=2))
    assert epoch_line(toy(samples=41, sampler="balanced")) == (
        "an epoch: 6 batches of 8, every class equally often; images of small classes come several times, augmented"
        " differently"
    )
