"""Folders of images as people really have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.base import UNLABELED, DataError
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.folder import Folder
from distill.data.summary import detail_lines


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


def parts_of(folder: Folder) -> dict[str, set[str]]:
    return {name: set(folder.split(name).ids) for name in sorted(folder.has_split)}  # type: ignore[arg-type]


def test_fractions_are_exact_stratified_and_follow_the_ids(tmp_path) -> None:
    put(tmp_path, *[f"{label}/{index}.png" for label, count in zip("abc", (100, 61, 5)) for index in range(count)])
    settings = {"test_fraction": 0.2, "val_fraction": 0.1}
    folder = source(tmp_path, **settings)
    parts = parts_of(folder)
    assert {name: len(part) for name, part in parts.items()} == {"test": 33, "train": 116, "val": 17}
    counts = {name: [sum(id.startswith(label) for id in part) for label in "abc"] for name, part in parts.items()}
    assert counts == {"test": [20, 12, 1], "train": [70, 43, 3], "val": [10, 6, 1]}
    assert len(set.union(*parts.values())) == 166 and parts_of(source(tmp_path, **settings)) == parts
    put(tmp_path, "a/new.png")
    after = parts_of(source(tmp_path, **settings))
    moved = sum(len(part - after[name]) for name, part in parts.items())
    assert moved <= 4


def test_a_small_fraction_of_small_classes_is_exact(tmp_path) -> None:
    put(tmp_path, *[f"{label}/{index}.png" for label in range(10) for index in range(4)], "alone/1.png")
    folder = source(tmp_path, test_fraction=0.1)
    assert len(folder.split("test")) == 4 and "alone/1.png" in folder.split("train").ids
    with pytest.raises(DataError, match=r"test_fraction 0.01 of 41 images is none"):
        source(tmp_path, test_fraction=0.01)


def test_a_fraction_of_the_train_folder_where_there_is_no_test_folder(tmp_path) -> None:
    put(
        tmp_path,
        *[f"{split}/{label}/{index}.png" for split in ("train", "val") for label in "ab" for index in range(9)],
    )
    folder = source(tmp_path, test_fraction=1 / 3)
    assert {name: len(part) for name, part in parts_of(folder).items()} == {"test": 6, "train": 12, "val": 18}


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


def test_a_split_may_have_fewer_classes_than_train(tmp_path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/2.png", "test/b/3.png")
    folder = source(tmp_path)
    assert folder.classes == ("a", "b", "c") and list(folder.split("test").labels) == [1]
    settings = {"size": 8, "batch_size": 2, "workers": 0}
    lines = detail_lines(ExperimentData(DataSettings(source=Folder.Settings(root=tmp_path), **settings)))
    assert "val has no image of 2 of 3 classes: a, b" in lines and "test has no image of 2 of 3 classes: a, c" in lines


def test_errors_name_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"data.source.root: no folder {tmp_path}/gone$"):
        source(Path("gone"))
    put(tmp_path, "one/a/1.png", "one/b/2.png")
    (tmp_path / "one/empty/.ipynb_checkpoints").mkdir(parents=True)
    with pytest.raises(DataError, match=r"class folder .*one/empty holds no images"):
        source(tmp_path / "one")
    put(tmp_path, "plain/1.png", "plain/2.png")
    plain = DataSettings(source=Folder.Settings(root=tmp_path / "plain"), size=8, workers=0)
    with pytest.raises(DataError, match=r"only train; add a test folder, or set data\.source\.test_fraction$"):
        ExperimentData(plain).subset("test")
    put(tmp_path, "two/a/1.png", "two/stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside class folders"):
        source(tmp_path / "two")
    put(tmp_path, "three/train/a/1.png", "three/train/b/1.png", "three/test/a/2.png", "three/test/c/3.png")
    with pytest.raises(DataError, match=r"classes that train lacks .*\n.*: b; all 2: a, b\n.*: c; all 2: a, c"):
        source(tmp_path / "three")
    with pytest.raises(DataError, match=r"has a test folder, test: leave test_fraction at 0"):
        source(tmp_path / "three", test_fraction=0.1)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing holds no images"):
        source(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "lost")
    with pytest.raises(DataError, match=r"link is a link to .*lost, which does not exist"):
        source(tmp_path / "link")
    with pytest.raises(DataError, match=r"stray\.png is a file, not a folder"):
        source(tmp_path / "two/stray.png")
    with pytest.raises(DataError, match="leaves nothing to train on"):
        source(tmp_path / "two", labels=False, test_fraction=0.6, val_fraction=0.4)


def test_a_corrupt_file_is_named_by_its_path(tmp_path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    path = tmp_path / "b/2.png"
    path.write_bytes(path.read_bytes()[:45])
    train = source(tmp_path).split("train")
    with pytest.raises(DataError, match=r"b/2\.png"):
        train[1]
    path.unlink()
    path.symlink_to("gone.png")
    with pytest.raises(DataError, match=r"b/2\.png: a link to gone\.png, which does not exist"):
        train[1]


def test_class_names_in_either_form_of_unicode(tmp_path) -> None:
    put(tmp_path, "train/Caf\u00e9/1.png", "train/b/1.png", "test/Cafe\u0301/2.png", "test/b/2.png")
    folder = source(tmp_path)
    assert folder.classes == ("Caf\u00e9", "b") and list(folder.split("test").labels) == [0, 1]


def test_fingerprint_sees_a_changed_file(tmp_path) -> None:
    put(tmp_path, *[f"a/{index}.png" for index in range(4)])
    settings = DataSettings(source=Folder.Settings(root=tmp_path, labels=False), size=8, workers=0)
    before, part = (made.fingerprint() for made in _whole_and_part(settings))
    assert before == ExperimentData(settings).fingerprint()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "a/0.png")
    changed, changed_part = (made.fingerprint() for made in _whole_and_part(settings))
    assert changed != before and changed_part != part


def _whole_and_part(settings: DataSettings) -> tuple[ExperimentData, ExperimentData]:
    whole = ExperimentData(settings)
    return whole, whole.part(whole.classes, {"train": whole.subset("train")}, 0)


def test_bits_in_use_are_those_of_all_images(tmp_path) -> None:
    for name, value in (("a/1", 300), ("a/2", 4095), ("b/3", 1000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"{name}.png")
    folder = source(tmp_path)
    assert folder.bits == 12 and "images of more than 8 bits are read as 12-bit" in folder.reading
    train = folder.split("train")
    values = [train[index].image[0, 0, 0] for index in range(3)]
    assert values == [round(value * 65535 / 4095) for value in (300, 4095, 1000)] and train[0].image.dtype == np.uint16
    whole = source(tmp_path, bits=16).split("train")
    assert [whole[index].image[0, 0, 0] for index in range(3)] == [300, 4095, 1000]
