"""Sources that other libraries read, on data made here."""

import os
import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from distill.data.base import UNLABELED, DataError
from distill.data.digits import Digits
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder
from distill.data.huggingface import HuggingFace
from distill.data.timm import Timm
from distill.data.torchvision import TorchVision

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # timm's and torchvision's imports


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_source_has_a_name() -> None:
    with pytest.raises(ValidationError, match="did you mean 'digits'"):
        DataSettings(source="digit")
    with pytest.raises(ValidationError, match="did you mean 'root'"):
        DataSettings(source={"type": "folder", "rot": "."})
    assert DataSettings(source="digits").source.component is Digits


def test_digits() -> None:
    source = Digits(Digits.Settings())
    parts = {name: source.split(name) for name in ("train", "val", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 1259, "val": 179, "test": 359}
    assert len({id for part in parts.values() for id in part.ids}) == 1797
    for part in parts.values():
        counts = np.bincount(part.labels) / len(part)  # type: ignore[arg-type]
        assert abs(counts - 0.1).max() < 0.01
    sample = parts["train"][0]
    assert sample.image.shape == (8, 8, 3) and sample.image.max() == 255 and sample.id.startswith("digits/")
    assert [part.ids[0] for part in parts.values()] == ["digits/0001", "digits/0013", "digits/0000"]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    for split, count in (("train", 6), ("test", 4)):
        rows = {
            "image": [{"bytes": png(10 * row), "path": f"photos/{row}.png"} for row in range(count)],
            "label": [row % 2 for row in range(count)],
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}-0.parquet")
    return tmp_path


def hf(folder: Path, **settings) -> HuggingFace.Settings:
    files = {"train": str(folder / "train-*.parquet"), "test": str(folder / "test-*.parquet")}
    return HuggingFace.Settings(**{"data_files": files, "cache_dir": folder / "cache", **settings})


def test_parquet(parquet: Path) -> None:
    source = HuggingFace(hf(parquet))
    train = source.split("train")
    assert source.classes == ("cat", "dog") and source.has_split == {"train", "test"}
    assert list(train.labels) == [0, 1] * 3 and train.ids[5] == "train/000005/photos/5.png"
    assert train[5].image.shape == (8, 8, 3) and train[5].image.max() == train[5].image.min() == 50
    assert list(source.split("test").labels) == [0, 1, 0, 1]
    assert len(train.sizes) == 6 and train.sizes[0] == len(png(0))  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_column_of_each_split(parquet: Path) -> None:
    """Of a val that is held out of train too; class labels are given by their names."""
    data = ExperimentData(DataSettings(source=hf(parquet), size=8, val_fraction=0.34))
    for split in ("train", "val", "test"):
        labels = data.subset(split).labels
        assert len(labels) and data.column(split, "label") == [data.classes[label] for label in labels]
    with pytest.raises(DataError, match="the source 'digits' has no table, so there is no column 'label'"):
        ExperimentData(DataSettings(source="digits")).column("val", "label")


def test_a_pickled_table_gives_the_same(parquet: Path) -> None:
    """As a spawned worker gets it: by the names of its Arrow files."""
    samples = HuggingFace(hf(parquet)).split("test")
    content = pickle.dumps(samples)
    assert b".arrow" in content and png(30) not in content
    again = pickle.loads(content)
    assert again.ids == samples.ids and len(again) == 4
    assert all((again[row].image == samples[row].image).all() for row in range(4))


def test_parquet_splits_by_expression_and_without_labels(parquet: Path) -> None:
    source = HuggingFace(hf(parquet, splits={"train": "train[:4]", "val": "train[4:]"}, labels=False))
    assert source.classes == () and source.has_split == {"train", "val"}
    assert [sample.image[0, 0, 0] for sample in map(source.split("val").__getitem__, range(2))] == [40, 50]
    assert set(source.split("train").labels) == {UNLABELED}


def local_folder(root: Path, *names: str) -> HuggingFace:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return HuggingFace(HuggingFace.Settings(name=str(root), cache_dir=root.parent / "cache"))


def test_a_local_folder_of_images(tmp_path: Path) -> None:
    read = local_folder(tmp_path / "one", *[f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"])
    assert read.classes == ("a", "b") and {name: len(read.split(name)) for name in read.has_split} == {
        "train": 2,
        "test": 2,
    }
    use = r"use the source \{type: folder"
    with pytest.raises(DataError, match=rf"finds train with 4 images in .* train is Training, test is Testing.*{use}"):
        local_folder(
            tmp_path / "two", *[f"{split}/{label}/1.png" for split in ("Training", "Testing") for label in "ab"]
        )
    with pytest.raises(DataError, match=rf"finds train with 2 images in .* train is train, test is Test.*{use}"):
        local_folder(tmp_path / "three", *[f"{split}/{label}/1.png" for split in ("train", "Test") for label in "ab"])
    with pytest.raises(DataError, match=rf"(?s){use}.*can be read in two ways"):
        local_folder(tmp_path / "four", *[f"{label}/{split}/1.png" for split in ("train", "test") for label in "ab"])


def test_bits_in_use_of_a_table(tmp_path: Path) -> None:
    import datasets

    buffer = BytesIO()
    Image.fromarray(np.array([[0, 2048], [1024, 4095]], np.uint16)).save(buffer, "PNG")
    rows = {"image": [{"bytes": buffer.getvalue(), "path": None}] * 2, "label": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train-0.parquet")
    here = {"data_files": {"train": str(tmp_path / "train-*")}}
    source = HuggingFace(hf(tmp_path, **here))
    assert source.split("train")[0].image[..., 0].tolist() == [[0, 32776], [16388, 65535]]
    whole = HuggingFace(hf(tmp_path, **here, bits=16))
    assert whole.split("train")[0].image[..., 0].tolist() == [[0, 2048], [1024, 4095]]


def test_plain_columns(tmp_path: Path) -> None:
    import datasets

    rows = {"photo": [{"bytes": png(1), "path": None}] * 3, "kind": ["b", "a", None], "number": [2, 0, 1]}
    kinds = {"photo": datasets.Image(), "kind": datasets.Value("string"), "number": datasets.Value("int64")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "train-0.parquet")
    here = {"data_files": {"train": str(tmp_path / "train-*")}}
    names = HuggingFace(hf(tmp_path, **here, label_column="kind"))
    assert names.classes == ("a", "b") and list(names.split("train").labels) == [1, 0, UNLABELED]
    assert names.split("train").ids[0] == "train/000000"
    numbers = HuggingFace(hf(tmp_path, **here, label_column="number"))
    assert numbers.classes == ("0", "1", "2") and list(numbers.split("train").labels) == [2, 0, 1]
    assert HuggingFace(hf(tmp_path, **here)).classes == ()
    assert names.column("train", "kind") == ["b", "a", ""] and names.column("train", "number") == ["2", "0", "1"]
    with pytest.raises(DataError, match=r"train has no column 'lens' \(column\), only"):
        names.column("train", "lens")
    with pytest.raises(DataError, match="no column 'color'"):
        HuggingFace(hf(tmp_path, **here, label_column="color"))
    with pytest.raises(DataError, match="no column 'picture'"):
        HuggingFace(hf(tmp_path, **here, image_column="picture"))


def test_parquet_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_files\.train: no file matches .*train-\*\.parquet \(looked in"):
        HuggingFace(hf(tmp_path))
    with pytest.raises(ValidationError, match=r"either name .* or data_files"):
        HuggingFace.Settings()
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"train-\*"):
        HuggingFace(hf(tmp_path, data_files={"train": str(tmp_path / "train-*")}))


HUB = """
import os, sys, time
from distill.data.huggingface import HuggingFace

assert not {"datasets", "huggingface_hub"} & set(sys.modules), "they read the environment when they are imported"
for offline in "01":
    if os.fork():
        assert os.wait()[1] == 0
        continue
    os.environ["HF_HUB_OFFLINE"] = offline
    import datasets
    started = time.perf_counter()
    try:
        HuggingFace(HuggingFace.Settings(name="nobody/nothing"))
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    assert time.perf_counter() - started < 10
    os._exit(0)
"""


@pytest.mark.slow
def test_an_unreachable_hub_fails_in_seconds_with_what_to_do(tmp_path: Path) -> None:
    # A port that nobody listens on stands for the missing network.
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": "."}
    command = [sys.executable, "-c", HUB]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **where})
    assert shown.returncode == 0, shown.stderr
    what = "DataError nobody/nothing: the Hugging Face Hub cannot be reached"
    for part in (what, "data.source.data_files", "HF_HOME"):
        assert shown.stdout.count(part) >= 2, shown.stdout


def fake(**settings) -> TorchVision.Settings:
    return TorchVision.Settings(
        **{"name": "FakeData", "arguments": {"size": 12, "image_size": [3, 8, 8], "num_classes": 3}, **settings}
    )


def test_torchvision() -> None:
    source = TorchVision(fake())
    train = source.split("train")
    assert source.classes == ("0", "1", "2") and source.has_split == {"train"} and len(train) == 12
    assert train[3].image.dtype == np.uint8 and train[3].image.shape == (8, 8, 3)
    assert train[3].id == "FakeData/train/000003" and train[3].label == train.labels[3]
    split = TorchVision(fake(splits={"train": {"random_offset": 0}, "test": {"random_offset": 50}}))
    assert split.has_split == {"train", "test"}
    assert not np.array_equal(split.split("train")[0].image, split.split("test")[0].image)


def test_torchvision_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class 'CIFAR1'; did you mean 'CIFAR10'"):
        TorchVision(TorchVision.Settings(name="CIFAR1"))
    with pytest.raises(DataError, match="FakeData has no argument 'sise'; did you mean 'size'"):
        TorchVision(fake(arguments={"sise": 3}))
    with pytest.raises(DataError, match=r"CIFAR10 in .*not found or corrupted.*download is false"):
        TorchVision(TorchVision.Settings(name="CIFAR10", root=tmp_path))


def test_torchvision_reads_cifar10_as_it_is_on_disk(tmp_path: Path, monkeypatch) -> None:
    import pickle

    import torchvision

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for index, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        rows = {"data": np.full((2, 3072), index, np.uint8), "labels": [index % 10, 9]}
        (folder / name).write_bytes(pickle.dumps(rows))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *a, **k: True)
    source = TorchVision(TorchVision.Settings(name="CIFAR10", root=tmp_path))
    assert source.has_split == {"train", "test"} and source.classes == tuple("abcdefghij")
    assert list(source.split("train").labels) == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert source.split("test")[0].image[0, 0].tolist() == [5, 5, 5] and source.split("test")[0].label == 5


def put(root: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(index))


def test_timm(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/2.png", "validation/a/3.png", "validation/b/4.png")
    source = Timm(Timm.Settings(root=tmp_path, splits={"train": "train", "test": "validation"}))
    assert source.classes == ("a", "b") and source.has_split == {"train", "test"}
    train = source.split("train")
    assert list(train.ids) == ["train/a/1.png", "train/b/2.png"] and list(train.labels) == [0, 1]
    assert train[1].image[0, 0].tolist() == [1, 1, 1] and train[1].label == 1
    (tmp_path / "train/b/2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"train/b/2\.png: an empty file"):
        train[1]


def test_timm_finds_the_splits_of_a_folder(tmp_path: Path) -> None:
    put(tmp_path, *[f"x/{split}/{label}/1.png" for split in ("Training", "Testing") for label in "ab"])
    put(tmp_path, "x/Training/a/2.webp", "x/Training/a/._3.png", "x/Training/.checkpoints/4.png")
    (tmp_path / "x/Training/b/up").symlink_to("..")
    source = Timm(Timm.Settings(root=tmp_path))
    assert source.classes == ("a", "b") and source.has_split == {"train", "test"}
    assert list(source.split("train").ids) == ["train/a/1.png", "train/a/2.webp", "train/b/1.png"]
    assert list(source.split("train").labels) == [0, 0, 1] and list(source.split("test").labels) == [0, 1]
    assert source.reading == f"{tmp_path}: train is x/Training, test is x/Testing"
    assert {each.reason: each.count for each in source.skipped} == {
        "hidden": 2,
        "link to a folder that is read already": 1,
    }
    few = Timm(Timm.Settings(root=tmp_path, arguments={"input_key": ".png"}))
    assert len(few.split("train")) == 2
    assert ".webp (timm does not read it; the source folder does)" in {each.reason for each in few.skipped}
    inside = Timm(Timm.Settings(root=tmp_path / "x", splits={"train": "training", "test": "test"}))
    assert list(inside.split("test").ids) == ["test/a/1.png", "test/b/1.png"]
    with pytest.raises(DataError, match=r"no folder val in .*, which holds Testing, Training"):
        Timm(Timm.Settings(root=tmp_path / "x", splits={"train": "train", "val": "val"}))


def image_folder(root: Path) -> TorchVision:
    return TorchVision(TorchVision.Settings(name="ImageFolder", root=root))


def test_torchvision_image_folder_reads_what_the_folder_source_reads(tmp_path: Path) -> None:
    """All formats, EXIF orientation and 16 bits; what is no image is counted."""
    put(tmp_path, "a/1.png", "a/2.jfif", "a/3.avif", "b/4.qoi", "b/5.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "b/6.png", exif=exif)
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "b/7.png")
    (tmp_path / "b/8.txt").write_text("no image")
    np.save(tmp_path / "b/9.npy", np.zeros((4, 4)))
    source, own = image_folder(tmp_path), Folder(Folder.Settings(root=tmp_path))
    train, expected = source.split("train"), own.split("train")
    assert source.bits == own.bits == 10 and source.depth == 16 and len(train) == len(expected) == 7
    for index in range(7):
        assert np.array_equal(train[index].image, expected[index].image)
    assert {str(each) for each in source.skipped} == {
        "1 × .txt (not an image): b/8.txt",
        "1 × an array beside image files: b/9.npy",
    }


def test_torchvision_image_folder(tmp_path: Path) -> None:
    put(tmp_path / "one", "a/1.png", "b/2.png", "b/._2.png", "b/3.jp2")
    (tmp_path / "one/a/up").symlink_to("..")
    source = image_folder(tmp_path / "one")
    assert source.classes == ("a", "b") and list(source.split("train").labels) == [0, 1, 1]
    assert {each.reason for each in source.skipped} == {"hidden", "link to a folder that is read already"}
    put(tmp_path / "two", *[f"{split}/{label}/1.png" for split in ("Training", "Testing") for label in "ab"])
    with pytest.raises(DataError, match=r"each folder for a class, but train is Training.*source \{type: folder"):
        image_folder(tmp_path / "two")
    put(tmp_path / "three", "plants/a/1.png", "plants/b/1.png")
    with pytest.raises(DataError, match=r"each folder for a class, but the folders in plants are classes"):
        image_folder(tmp_path / "three")
    put(tmp_path / "four", "a/1.png", "b/1.png", "test/1.png")
    with pytest.raises(DataError, match=r"(?s)source \{type: folder.*can be read in two ways"):
        image_folder(tmp_path / "four")


def test_timm_errors(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "a/2.png")
    with pytest.raises(DataError, match=r"splits.train: no folder train in .*, which holds a; timm would read all"):
        Timm(Timm.Settings(root=tmp_path / "train", splits={"train": "train", "test": "test"}))
    with pytest.raises(DataError, match="use the source torchvision"):
        Timm(Timm.Settings(name="torch/image_folder", root=tmp_path))
    with pytest.raises(DataError, match="no file or folder"):
        Timm(Timm.Settings(root=tmp_path / "gone"))
