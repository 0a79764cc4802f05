"""Folders of images as people really have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.base import UNLABELED, DataError
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), sum(name.encode()) % 256, np.uint8)).save(path)


def source(root: Path, **settings) -> Folder:
    return Folder(Folder.Settings(root=root, **settings))


def test_split_folders(tmp_path, monkeypatch) -> None:
    put(tmp_path, "set/train/b/1.png", "set/train/a/x/2.JPG", "set/validation/a/3.png", "set/validation/b/4.png")
    put(tmp_path, "set/test/a/5.png", "set/test/b/6.png", "set/train/.ipynb_checkpoints/1.png", "set/train/a/._2.jpg")
    (tmp_path / "set/train/README.md").write_text("not an image")
    monkeypatch.chdir(tmp_path)
    folder = source(Path("set"))
    assert folder.classes == ("a", "b") and folder.has_split == {"train", "val", "test"}
    train = folder.split("train")
    assert list(train.ids) == ["train/a/x/2.JPG", "train/b/1.png"] and list(train.labels) == [0, 1]
    assert list(folder.split("val").ids) == ["validation/a/3.png", "validation/b/4.png"]
    assert train[1].image.shape == (8, 8, 3) and train[1].label == 1 and train[1].id == "train/b/1.png"
    assert source(tmp_path / "set").split("train").ids == train.ids


def test_one_folder_divided_by_hash(tmp_path) -> None:
    put(tmp_path, *[f"{label}/{index}.png" for label in "ab" for index in range(100)])
    folder = source(tmp_path, test_fraction=0.2, val_fraction=0.1)
    parts = {name: set(folder.split(name).ids) for name in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 200 and len(set.union(*parts.values())) == 200
    assert 25 <= len(parts["test"]) <= 55 and 8 <= len(parts["val"]) <= 32
    put(tmp_path, "a/new.png", "b/0000.png")
    after = source(tmp_path, test_fraction=0.2, val_fraction=0.1)
    for name, before in parts.items():
        assert before <= set(after.split(name).ids)  # type: ignore[arg-type]


def test_a_flat_folder_has_no_labels(tmp_path) -> None:
    put(tmp_path, *[f"{index}.png" for index in range(20)])
    folder = source(tmp_path, test_fraction=0.5)
    assert folder.classes == () and set(folder.split("test").labels) == {UNLABELED}
    module = ExperimentData(DataSettings(source=Folder.Settings(root=tmp_path), size=8, batch_size=4, workers=0))
    assert (next(iter(module.train_loader())).labels == UNLABELED).all()


def test_labels_can_be_left_out(tmp_path) -> None:
    put(tmp_path, "a/1.png", "b/c/2.png", "3.png")
    folder = source(tmp_path, labels=False)
    assert folder.classes == () and folder.split("train").ids == ["3.png", "a/1.png", "b/c/2.png"]


def test_a_flat_training_folder_beside_labeled_test(tmp_path) -> None:
    put(tmp_path, "train/1.png", "test/a/2.png", "test/b/3.png")
    folder = source(tmp_path)
    assert folder.classes == ("a", "b")
    assert list(folder.split("train").labels) == [UNLABELED] and list(folder.split("test").labels) == [0, 1]


def test_a_class_called_train(tmp_path) -> None:
    put(tmp_path, "train/1.png", "car/2.png")
    assert source(tmp_path).classes == ("car", "train")


def test_errors_name_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"no folder gone \(looked in {tmp_path}\)"):
        source(Path("gone"))
    put(tmp_path, "one/a/1.png", "one/b/2.png")
    (tmp_path / "one/empty/.ipynb_checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"class folder .*one/empty holds no images"):
        source(tmp_path / "one")
    put(tmp_path, "two/a/1.png", "two/stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside class folders"):
        source(tmp_path / "two")
    put(tmp_path, "three/train/a/1.png", "three/train/b/1.png", "three/test/a/2.png")
    with pytest.raises(DataError, match="class 'b' is in train but not in test"):
        source(tmp_path / "three")
    with pytest.raises(DataError, match="has a train folder"):
        source(tmp_path / "three", test_fraction=0.1)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing holds no images"):
        source(tmp_path / "nothing")
    with pytest.raises(DataError, match="leaves nothing to train on"):
        source(tmp_path / "two", labels=False, test_fraction=0.6, val_fraction=0.4)


def test_a_corrupt_file_is_named_by_its_path(tmp_path) -> None:
    put(tmp_path, "a/1.png", "a/2.png")
    path = tmp_path / "a/2.png"
    path.write_bytes(path.read_bytes()[:45])
    with pytest.raises(DataError, match=r"a/2\.png"):
        source(tmp_path).split("train")[1]


def test_fingerprint_sees_a_changed_file(tmp_path) -> None:
    put(tmp_path, *[f"a/{index}.png" for index in range(4)])
    settings = DataSettings(source=Folder.Settings(root=tmp_path), size=8, workers=0)
    before = ExperimentData(settings).fingerprint()
    assert before == ExperimentData(settings).fingerprint()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a/0.png")
    assert ExperimentData(settings).fingerprint() != before
