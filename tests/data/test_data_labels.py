"""Labels as people have them: numbers of every kind, names in any order, and columns that are no labels."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from distill.data.base import UNLABELED, DataError
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.huggingface import HuggingFace
from distill.data.labels import LabelColumn, LabelSettings, check_names, mismatch, read_labels, shortened
from distill.data.timm import Timm
from distill.data.torchvision import TorchVision

NAN = float("nan")


def read(train, names=None, *, settings: dict | None = None, **others):
    """Classes, and the indices of each split; a split is its values, or (values, names)."""
    splits = {"train": [LabelColumn(train, names)]}
    for split, column in others.items():
        splits[split] = [LabelColumn(*column) if isinstance(column, tuple) else LabelColumn(column)]
    classes, labels = read_labels(splits, "data", LabelSettings(type="x", **settings or {}))
    return classes, *labels.values()


@pytest.mark.parametrize(
    ("values", "classes", "labels"),
    [
        ([0, 2, 1, 2], ("0", "1", "2"), [0, 2, 1, 2]),
        ([-1, 1, 1, -1], ("-1", "1"), [0, 1, 1, 0]),
        ([1, 2, 3, 1], ("1", "2", "3"), [0, 1, 2, 0]),
        ([555, 999999, 555], ("555", "999999"), [0, 1, 0]),
        ([0, 1, 3, 10, 2], ("0", "1", "2", "3", "10"), [0, 1, 3, 4, 2]),
        ([0, 1, 3, 1], ("0", "1", "3"), [0, 1, 2, 1]),
        ([-2, -1, 0], ("-2", "-1", "0"), [0, 1, 2]),
        ([1.0, 2.0, NAN, None], ("1", "2"), [0, 1, UNLABELED, UNLABELED]),
        ([False, True, True], ("False", "True"), [0, 1, 1]),
        ([True, True], ("False", "True"), [1, 1]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
        (["10", "9", "1"], ("1", "9", "10"), [2, 1, 0]),
        (["dog", "cat", None], ("cat", "dog"), [1, 0, UNLABELED]),
        ([np.int64(4), np.float32(7), torch.tensor(4)], ("4", "7"), [0, 1, 0]),
        ([np.str_("b"), np.bool_(True)], ("True", "b"), [1, 0]),
        ([b"dog", b"cat"], ("cat", "dog"), [1, 0]),
        (np.array([[0], [2], [1]]), ("0", "1", "2"), [0, 2, 1]),
        ([0, 255], ("0", "255"), [0, 1]),
        ([None, None], (), [UNLABELED, UNLABELED]),
        ([-1, -1], (), [UNLABELED, UNLABELED]),
    ],
)
def test_values_without_names(values, classes, labels) -> None:
    assert read(values) == (classes, labels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.5], r"data: row 1 of train has the label 0\.5: a fraction"),
        ([0, float("inf")], "row 1 of train has the label inf: a fraction"),
        ([[0, 1], [1]], r"row 0 of train has the label \[0, 1\]: several values"),
        ([np.array([1, 0]), np.array([0, 1])], r"row 0 .*array\(\[1, 0\]\).*several values"),
        ([torch.tensor([1.0, 0.0])], "several values"),
        (["a", {"x": 1}], "row 1 of train has the label .* several values"),
        (["a", ""], "row 1 of train has the label '': empty; a missing label is a missing value"),
        (["a", 1j], "row 1 of train has the label 1j: a complex"),
        (["a", " "], "row 1 of train has the label ' ': empty"),
        (["cat", "dog", "cat "], "the classes 'cat' and 'cat ' differ only in spaces"),
        ([[0.0, 1.0, 0.0]], "of one-hot labels store the number of the class"),
        ([0, 1, -100], "-100 is either a class or means no label: set data.source.unlabeled: -100"),
        ([0, 1, 2, 255], "255 is either a class or means no label"),
        (["a", 3], "data: train has names and numbers as labels: 3, a"),
        (
            [-1, 0, 1],
            r"train has the labels -1, 0, 1\. -1 is either a class or means no label: set data.source.unlabeled",
        ),
        ([-1, 0], "-1 is either a class or means no label"),
    ],
)
def test_values_that_are_no_labels(values, message) -> None:
    with pytest.raises(DataError, match=message):
        read(values)


def test_minus_one_is_what_the_settings_say() -> None:
    assert read([-1, 0, 1], settings={"unlabeled": -1}) == (("0", "1"), [UNLABELED, 0, 1])
    assert read([-1, 0, 1], settings={"classes": [-1, 0, 1]}) == (("-1", "0", "1"), [0, 1, 2])
    assert read([9, 0, 1], settings={"unlabeled": 9}) == (("0", "1"), [UNLABELED, 0, 1])
    assert read([-1, 1], test=[-1, -1])[2] == [0, 0], "a class of train is one in test"
    assert read([0, 1], test=[-1, -1])[2] == [UNLABELED] * 2, "a test split without labels"
    assert read([0, -1], ["cat", "dog"]) == (("cat", "dog"), [0, UNLABELED]), "as the datasets library marks it"
    with pytest.raises(DataError, match=r"test has labels -1\. -1 is either"):
        read([0, 1], test=[-1, 0])


def test_names_rule_whatever_their_order() -> None:
    classes, train, test, val = read([0, 1], ["cat", "dog"], test=([0, 1], ["dog", "cat"]), val=(["dog"],))
    assert (classes, train, test, val) == (("cat", "dog"), [0, 1], [1, 0], [1])
    assert read([0, 1], ["cat", "dog"], test=([0], ["dog"]))[2] == [1], "a file may name some of the classes"
    assert read([0, 2], ["c", "b", "a"])[0] == ("c", "b", "a"), "declared classes count without an image"
    assert read([0, 1], ["cat", "dog"], settings={"classes": ["dog", "cat"]}) == (("dog", "cat"), [1, 0])
    parts = [LabelColumn([0, 1], ["cat", "dog"]), LabelColumn([0, 1], ["dog", "cat"])]
    assert read_labels({"train": parts}, "data", LabelSettings(type="x"))[1] == {"train": [0, 1, 1, 0]}
    parts[1] = LabelColumn([0], ["dog", "cow"])
    with pytest.raises(DataError, match=r"another file has classes .*\(cow\)\n  one file: cat, dog\n  another"):
        read_labels({"train": parts}, "data", LabelSettings(type="x"))


def test_declared_classes_number_the_labels() -> None:
    assert read([0, 2], settings={"classes": 4}) == (("0", "1", "2", "3"), [0, 2])
    assert read([0, 2], settings={"classes": ["a", "b", "c"]}) == (("a", "b", "c"), [0, 2])
    assert read([1, 2], settings={"classes": [2, 1]}) == (("2", "1"), [1, 0])
    with pytest.raises(DataError, match=r"train has classes that data\.source\.classes 2 lacks \(2\)"):
        read([0, 2], settings={"classes": 2})
    with pytest.raises(DataError, match="classes 3, but data names a, b"):
        read([0, 1], ["a", "b"], settings={"classes": 3})
    with pytest.raises(ValidationError, match="classes"):
        LabelSettings(type="x", classes=0)


@pytest.mark.parametrize(
    ("train", "test", "strange", "lists"),
    [
        (([0, 1], ["cat", "dog"]), ([0, 1], ["cat", "wolf"]), "wolf", ("cat, dog", "cat, wolf")),
        (([0, 1], ["cat", "dog"]), ([0, 1],), "0, 1", ("cat, dog", "0, 1")),
        (([0, 1],), ([0, 1], ["cat", "dog"]), "cat, dog", ("0, 1", "cat, dog")),
        (([1, 2],), ([0, 1],), "0", ("1, 2", "0, 1")),
        (([0, 1, 3],), ([2],), "2", ("0, 1, 3", "2")),
        ((["a", "b"],), (["b", "c"],), "c", ("a, b", "b, c")),
    ],
)
def test_a_class_that_train_lacks_is_an_error_with_both_lists(train, test, strange, lists) -> None:
    with pytest.raises(DataError) as caught:
        read(*train, test=test)
    first, train_line, test_line, *_ = str(caught.value).split("\n")
    assert first == f"data: test has classes that train lacks ({strange})"
    assert (train_line, test_line) == (f"  train: {lists[0]}", f"  test: {lists[1]}")


def test_a_number_out_of_range_of_the_names_is_named_with_its_row() -> None:
    with pytest.raises(DataError, match="data: row 1 of train has the label 2, and there are 2 classes: cat, dog"):
        read([0, 2], ["cat", "dog"])


def test_lists_in_errors_are_short() -> None:
    many = [f"class {number}" for number in range(1000)]
    assert shortened(many).endswith("class 7, … (1000 in all)") and len(shortened(["x" * 500])) == 40
    assert len(str(mismatch("data", "train", many, "test", [*many, "new"]))) < 500
    for names, message in [(["a", "a"], "two classes have the name 'a'"), (["a", " "], "' ' is no class name")]:
        with pytest.raises(DataError, match=message):
            check_names(names, "data")


# --- Readers ------------------------------------------------------------------------------------------------------


def png(value: int = 0) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(file: Path, labels, kind=None, column: str = "label") -> None:
    import datasets

    rows = {"image": [{"bytes": png(row), "path": None} for row in range(len(labels))], column: labels}
    if kind is None:
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    else:
        table = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image(), column: kind}))
    table.to_parquet(file)


def parquet(folder: Path, **settings) -> HuggingFace:
    splits = sorted({file.stem.partition("-")[0] for file in folder.glob("*-*")})
    files = {split: str(folder / f"{split}-*") for split in splits}
    return HuggingFace(HuggingFace.Settings(**{"data_files": files, "cache_dir": folder / "cache", **settings}))


def test_parquet_files_with_names_in_another_order(tmp_path: Path) -> None:
    import datasets

    for file, names in [("train-0", "abc"), ("train-1", "cba"), ("train-2", "cba"), ("test-0", "bca")]:
        write(tmp_path / f"{file}.parquet", [0, 1, 2], datasets.ClassLabel(names=list(names)))
    source = parquet(tmp_path)
    assert source.classes == ("a", "b", "c")
    train, test = source.split("train"), source.split("test")
    assert list(train.labels) == [0, 1, 2, 2, 1, 0, 2, 1, 0] and list(test.labels) == [1, 2, 0]
    assert [train[row].image[0, 0, 0] for row in range(9)] == [0, 1, 2] * 3 and len(train.ids) == 9
    assert list(HuggingFace(source.settings).split("train").ids) == list(train.ids)
    folder = HuggingFace(HuggingFace.Settings(name=str(tmp_path), cache_dir=tmp_path / "cache"))
    assert list(folder.split("test").labels) == [1, 2, 0], "the library finds the files of a folder itself"
    with pytest.raises(DataError, match=r"column 'label' differs .* in another order\n.*: [abc, ]+\n.*: [abc, ]+$"):
        parquet(tmp_path, splits={"train": "train[:2]"})
    write(tmp_path / "test-1.parquet", [0], datasets.ClassLabel(names=["a", "d"]))
    assert list(parquet(tmp_path).split("test").labels) == [1, 2, 0, 0], "nothing is labeled d"
    write(tmp_path / "test-1.parquet", ["d"])
    with pytest.raises(DataError, match=r"\(d\)\n  train: a, b, c\n  test: a, b, c, d"):
        parquet(tmp_path)


def test_parquet_labels_of_other_kinds(tmp_path: Path) -> None:
    import datasets

    write(tmp_path / "train-0.parquet", [-1, 1, 1], column="target")
    write(tmp_path / "test-0.parquet", [1.0, -1.0], column="target")
    source = parquet(tmp_path)
    assert source.classes == ("-1", "1") and list(source.split("train").labels) == [0, 1, 1]
    assert list(source.split("test").labels) == [1, 0]
    data = ExperimentData(DataSettings(source=source.settings, size=8, batch_size=3, workers=0, val_fraction=0))
    assert data.labeled_count == 3
    write(tmp_path / "test-0.parquet", [1, -1])
    with pytest.raises(DataError, match=r"test has no column 'target' \(label_column\), only \['image', 'label'\]"):
        parquet(tmp_path)
    (tmp_path / "test-0.parquet").unlink()
    for kind in (datasets.Value("int64"), datasets.ClassLabel(names=["a", "b"])):
        write(tmp_path / "train-0.parquet", [[0, 1], [1], []], [kind])
        with pytest.raises(DataError, match=r"row 0 of train has the label \[0, 1\]: several values"):
            parquet(tmp_path)
    assert set(parquet(tmp_path, labels=False).split("train").labels) == {UNLABELED}


def image(*path: Path) -> None:
    for file in path:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())


def test_torchvision_and_timm_compare_classes_by_name(tmp_path: Path) -> None:
    image(
        *(
            tmp_path / name
            for name in ("train/b/0.png", "train/c/1.png", "train/d/2.png", "test/c/3.png", "test/d/4.png")
        )
    )
    splits = {split: {"root": str(tmp_path / split)} for split in ("train", "test")}
    readers = [
        TorchVision(TorchVision.Settings(name="ImageFolder", splits=splits)),
        Timm(Timm.Settings(root=tmp_path, splits={"train": "train", "test": "test"})),
    ]
    for source in readers:
        assert source.classes == ("b", "c", "d"), source
        assert list(source.split("train").labels) == [0, 1, 2] and list(source.split("test").labels) == [1, 2]
    image(tmp_path / "test/a/5.png")
    for source in readers:
        with pytest.raises(DataError, match=r"lacks \(a\)\n  train: b, c, d\n  test: a, c, d"):
            type(source)(source.settings)


def test_timm_numbers_classes_from_its_class_map(tmp_path: Path) -> None:
    image(tmp_path / "train/b/0.png", tmp_path / "train/a/1.png")
    (tmp_path / "map.txt").write_text("b\na\n")
    source = Timm(Timm.Settings(root=tmp_path, arguments={"class_map": str(tmp_path / "map.txt")}))
    assert source.classes == ("b", "a")
    by_name = {id.split("/")[1]: label for id, label in zip(source.split("train").ids, source.split("train").labels)}
    assert by_name == {"b": 0, "a": 1}
