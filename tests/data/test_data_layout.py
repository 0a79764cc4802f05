"""Folders as archives have them: which are splits, which are classes, and what is left to the user."""

from pathlib import Path
from typing import Any

import pytest

from distill.data.base import DataError
from distill.data.folder import Folder
from distill.data.split_names import split_of, splits_of


def put(root: Path, *patterns: str) -> None:
    """Empty files, since no layout depends on pixels; ``{ab}`` in a pattern: a folder of each letter."""
    for pattern in patterns:
        head, brace, rest = pattern.partition("{")
        letters, _, tail = rest.partition("}")
        for letter in letters if brace else [""]:
            path = root / f"{head}{letter}{tail}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def read(root: Path, **settings: Any) -> tuple[dict[str, int], tuple[str, ...]]:
    folder = Folder(Folder.Settings(root=root, **settings))
    return {name: len(folder.split(name)) for name in folder.has_split}, folder.classes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            (name, "train")
            for name in ("train", "Training", "TRAIN", "seg_train", "train_set", "trainSet", "train2017")
        ),
        *((name, "train") for name in ("Training Images", "trainval", "train_val", "my-train-data", "trainimages")),
        *((name, "val") for name in ("val", "valid", "Validation", "my_val", "dev", "eval", "val_images", "devset")),
        *((name, "test") for name in ("test", "Testing", "seg_test", "test1", "Test_Set", "testset", "TestData")),
        *((name, None) for name in ("invalid", "trains", "contest", "test_tube", "training_test", "device", "cat")),
        *((name, None) for name in ("train_test_split", "valuable", "greatest", "0", "")),
    ],
)
def test_the_split_that_a_name_means(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_names_that_differ_only_in_the_word_for_the_split() -> None:
    assert splits_of(["train_birds", "test_birds", "cat"]) == {"train_birds": "train", "test_birds": "test"}
    assert splits_of(["dogtrain", "dogtest"]) == {"dogtrain": "train", "dogtest": "test"}
    assert splits_of(["train_birds", "test_tube"]) == splits_of(["dogtrain", "contest"]) == {}


def test_evaluation_is_val_but_test_beside_val() -> None:
    assert splits_of(["training", "evaluation"]) == {"training": "train", "evaluation": "val"}
    assert splits_of(["training", "validation", "evaluation"])["evaluation"] == "test"
    assert splits_of(["train", "val", "test", "eval"])["eval"] == "val"


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        (["Training/{ab}/1.png", "Testing/{ab}/2.png"], {"train": 2, "test": 2}),
        (["train/{ab}/1.png", "Test/{ab}/2.png"], {"train": 2, "test": 2}),
        (["seg_train/seg_train/{ab}/1.png", "seg_test/seg_test/{ab}/2.png"], {"train": 2, "test": 2}),
        (["train_set/{ab}/1.png", "my_val/{ab}/2.png", "test1/{ab}/3.png"], {"train": 2, "val": 2, "test": 2}),
        (["root/archive/train/{ab}/1.png", "root/archive/valid/{ab}/2.png"], {"train": 2, "val": 2}),
        (["archive/Training Data/images/{ab}/1.png", "archive/dev/{ab}/2.png"], {"train": 2, "val": 2}),
        (["plants/{ab}/1.png"], {"train": 2}),
        (["x/y/plants/{ab}/deep/1.png", "readme.txt", "__MACOSX/x/._1.png"], {"train": 2}),
        (["test_data/train/{ab}/1.png", "test_data/val/{ab}/2.png"], {"train": 2, "val": 2}),
        (["{ab}/train/1.png", "{ab}/test/2.png"], {"train": 2, "test": 2}),
        (["train/{ab}/1.png", "test/{ab}/1.png", "annotations/1.xml"], {"train": 2, "test": 2}),
        (["train_birds/{ab}/1.png", "test_birds/{ab}/1.png"], {"train": 2, "test": 2}),
    ],
)
def test_layouts_with_two_classes(files: list[str], sizes: dict[str, int], tmp_path: Path) -> None:
    put(tmp_path, *files)
    assert read(tmp_path) == (sizes, ("a", "b"))


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["train/1.png", "car/2.png"], ("car", "train")),
        (["valid/1.png", "invalid/2.png"], ("invalid", "valid")),
        (["steam_train/1.png", "freight_train/1.png"], ("freight_train", "steam_train")),
        (["positive_test/1.png", "negative_test/1.png"], ("negative_test", "positive_test")),
        (["test_tube/1.png", "flask/2.png", "beaker/2.png"], ("beaker", "flask", "test_tube")),
    ],
)
def test_classes_that_are_named_like_splits(files: list[str], classes: tuple[str, ...], tmp_path: Path) -> None:
    put(tmp_path, *files)
    assert read(tmp_path) == ({"train": len(classes)}, classes)


def test_images_without_labels(tmp_path: Path) -> None:
    put(tmp_path / "yolo", "train/images/1.png", "train/labels/1.txt", "valid/images/2.png")
    assert read(tmp_path / "yolo") == ({"train": 1, "val": 1}, ())
    put(tmp_path / "nested", "train/train/1.png", "test/test/1.png")
    assert read(tmp_path / "nested") == ({"train": 1, "test": 1}, ())
    put(tmp_path / "plain", "archive/images/1.png")
    assert read(tmp_path / "plain") == ({"train": 1}, ())


@pytest.mark.parametrize(
    ("files", "lines", "chosen"),
    [
        (
            ["{ab}/1.png", "test/2.png"],
            [
                "(test named like a split, beside a, b)",
                "as splits: set data.source.splits to {train: ., test: test}",
                "as 3 classes, a, b, test: set data.source.splits to {}",
            ],
            [({"splits": {"train": ".", "test": "test"}}, {"train": 2, "test": 1}), ({"splits": {}}, {"train": 3})],
        ),
        (
            ["New/New/train/{ab}/1.png", "New/New/valid/{ab}/1.png", "test/test/1.png"],
            ["{train: New/New/train, val: New/New/valid, test: test}", "as 2 classes, New, test"],
            [({"splits": {"train": "New/New/train", "test": "test"}}, {"train": 2, "test": 1})],
        ),
        (
            ["train/1.png", "test/1.png", "car/1.png"],
            ["{train: train, test: test}", "as 3 classes, car, test, train"],
            [({"splits": {"train": "train", "test": "test"}}, {"train": 1, "test": 1})],
        ),
        (
            ["train/{ab}/1.png", "train2/{ab}/1.png", "test/{ab}/1.png"],
            ["several like the same one", "{train: train, test: test}"],
            [({"splits": {"train": "train2", "test": "test"}}, {"train": 2, "test": 2})],
        ),
        (
            ["train/{ab}/1.png", "more/{ab}/1.png"],
            ["train named like a split, beside more", "{train: train}", "as 2 classes, more, train"],
            [({"splits": {"train": "train"}}, {"train": 2})],
        ),
        (
            ["day/{ab}/1.png", "night/{ab}/1.png"],
            ["as 2 classes, day, night: set data.source.class_folder to outer", "as 2 classes, a, b: set"],
            [({"class_folder": "outer"}, {"train": 4}), ({"class_folder": "inner"}, {"train": 4})],
        ),
        (
            ["{ab}/train/good/1.png", "{ab}/test/bad/1.png"],
            ["for it holds test, train", "as a data set with splits: set data.source.root to "],
            [({"splits": {}}, {"train": 4})],
        ),
        (
            ["a/train/1.png", "a/test/1.png", "b/1.png"],
            ["a can be read in two ways", "as part of a class"],
            [({"splits": {}}, {"train": 3})],
        ),
        (
            ["train/images/1.png", "train/labels/1.png", "val/images/1.png", "val/labels/1.png"],
            ["labels may hold a picture for each image of images", "as 2 classes, images, labels"],
            [({"class_folder": "outer"}, {"train": 2, "val": 2})],
        ),
        (
            ["images/{ab}/1.png", "masks/{ab}/1.png"],
            ["as the images of images alone: set data.source.root to"],
            [({"class_folder": "outer"}, {"train": 4})],
        ),
        (
            ["cat/1.png"],
            ["as images without labels: set data.source.labels to false", "as one class, 'cat'"],
            [({"labels": False}, {"train": 1})],
        ),
    ],
)
def test_two_readings_are_an_error_with_both(
    files: list[str], lines: list[str], chosen: list[tuple[dict, dict]], tmp_path: Path
) -> None:
    put(tmp_path, *files)
    with pytest.raises(DataError, match="can be read in two ways") as error:
        read(tmp_path)
    assert all(line in str(error.value) for line in lines), str(error.value)
    for settings, sizes in chosen:
        assert read(tmp_path, **settings)[0] == sizes


def test_only_a_test_folder(tmp_path: Path) -> None:
    put(tmp_path, "test/{ab}/1.png")
    with pytest.raises(
        DataError, match=r"holds test and no folder of training images; .* set data.source.root to .*test"
    ):
        read(tmp_path)


def test_a_split_without_images_that_can_be_read(tmp_path: Path) -> None:
    put(tmp_path, "train/{ab}/1.png", "test/{ab}/1.dcm", "train_labels/1.txt")
    with pytest.raises(DataError, match=r"test holds no images that can be read; .*\n  2 × \.dcm \(not a format"):
        read(tmp_path)
    assert read(tmp_path, splits={"train": "train"}) == ({"train": 2}, ("a", "b"))


def test_the_inner_folder_is_the_class(tmp_path: Path) -> None:
    put(tmp_path, "day/{ab}/1.png", "night/{bc}/1.png")
    folder = Folder(Folder.Settings(root=tmp_path, class_folder="inner"))
    assert folder.classes == ("a", "b", "c") and list(folder.split("train").labels) == [0, 1, 1, 2]
    put(tmp_path, "stray.png")
    with pytest.raises(DataError, match=r"stray\.png lies beside folders of classes"):
        read(tmp_path, class_folder="inner")


def test_given_splits_are_checked(tmp_path: Path) -> None:
    put(tmp_path, "one/{ab}/1.png", "two/{ab}/1.png")
    with pytest.raises(DataError, match=r"splits.test: no folder tow with images in .*; there are one, two"):
        read(tmp_path, splits={"train": "one", "test": "tow"})
    with pytest.raises(DataError, match=r"splits.test: \.\./x is not a folder below"):
        read(tmp_path, splits={"train": "one", "test": "../x"})
    with pytest.raises(DataError, match="must name the folder of train"):
        read(tmp_path, splits={"test": "one"})


def test_what_was_understood_is_told(tmp_path: Path) -> None:
    put(tmp_path, "x/Training/{ab}/1.png", "x/Testing/{ab}/1.png", "x/pred/1.png")
    folder = Folder(Folder.Settings(root=tmp_path))
    assert folder.reading == f"{tmp_path}: train is x/Training, test is x/Testing"
    assert [str(each) for each in folder.skipped] == ["1 × outside the folders of splits and classes: x/pred/"]


def test_case_of_class_names(tmp_path: Path) -> None:
    put(tmp_path, "train/{ab}/1.png", "test/{aB}/1.png")
    with pytest.raises(DataError, match=r"(?s)only in train: b.*only in test: B.*differ only in upper and lower case"):
        read(tmp_path)
    put(tmp_path / "zeros", "train/1/1.png", "train/2/1.png", "test/01/1.png")
    with pytest.raises(DataError, match=r"01 of test differ only in .* leading zeros: rename a folder"):
        read(tmp_path / "zeros")


def test_a_picture_beside_the_splits_of_a_wrapper(tmp_path: Path) -> None:
    put(tmp_path, "archive/train/{ab}/1.png", "archive/test/{ab}/1.png", "archive/logo.png")
    assert read(tmp_path) == ({"train": 2, "test": 2}, ("a", "b"))


def test_images_without_labels_beside_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/{ab}/1.png", "train/unlabeled/{xyz}.png", "test/{ab}/1.png")
    folder = Folder(Folder.Settings(root=tmp_path))
    assert folder.classes == ("a", "b") and sorted(folder.split("train").labels) == [-1, -1, -1, 0, 1]
    assert folder.reading.endswith("; without labels: train/unlabeled")
    put(tmp_path, "test/unlabeled/1.png")
    assert read(tmp_path, class_folder="outer")[1] == ("a", "b", "unlabeled")
