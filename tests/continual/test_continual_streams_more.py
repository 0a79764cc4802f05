"""Superclasses, parts of images, domains, manifests and online streams: what each task holds, and what is refused."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from toy_stream import stream, stream_tree
from toy_training import SIZES, Blobs

from augment.base import UserError
from augment.recipe import Op
from distill.commands.data import show_data
from distill.config import merge_trees, validate_tree
from distill.continual.cifar100 import SUPERCLASSES, TABLE
from distill.continual.errors import ContinualError
from distill.continual.open_stream import open_stream, stream_in
from distill.continual.summary import task_lines
from distill.continual.task import Task, classes_are_equal
from distill.data.base import DataError, Sample, Samples, Split
from distill.data.experiment_data import ExperimentData
from distill.data.recipe_samples import RecipeSamples
from distill.experiments.continual import ContinualExperiment
from distill.run.context import RunContext, make_data
from distill.run.runner import check_stages
from distill.training.signals import StopSignal


class Cameras(Blobs):
    """Blobs with a table: the camera of each image, and a column with a missing value."""

    def column(self, split: Split, name: str) -> list[str]:
        ids = self.split(split).ids
        if name == "camera":
            return [("left", "right", "top")[int(id[-2:]) % 3] for id in ids]
        return [""] * len(ids) if name == "empty" else super().column(split, name)  # type: ignore[return-value]


class OneEach(Blobs):
    """One training image of each class."""

    has_split = frozenset({"train", "test"})

    def split(self, name: Split) -> Samples:
        samples: Any = super().split(name)
        if name == "train":
            samples.ids, samples.labels = samples.ids[:4], samples.labels[:4]
        return samples

    def __init__(self, settings: Any):
        super().__init__(settings)
        self.has_split = frozenset({"train", "test"})


def settings_of(tmp_path: Path, kind: str, keys: dict[str, Any], **changes: Any) -> ContinualExperiment:
    """The toy experiment with another stream."""
    plain = {**stream_tree(tmp_path, **changes), "stream": {"type": kind, **keys}}
    settings = validate_tree(plain, "toy stream")
    assert isinstance(settings, ContinualExperiment)
    return settings


def divided(tmp_path: Path, kind: str, source: dict[str, Any] | None = None, **keys: Any) -> tuple[list[Task], Any]:
    """The tasks of a stream of the toy data, and the data."""
    settings = settings_of(tmp_path, kind, keys, data={"source": source or {}})
    data = make_data(settings)
    return stream_in(settings).tasks(data), data


def own(kind: type) -> dict[str, Any]:
    return {"type": f"{kind.__module__}:{kind.__qualname__}"}


def ids(data: ExperimentData, task: Task, split: Split = "train") -> list[str]:
    return [data.subset(split).ids[index] for index in task.indices[split]]


# Superclasses

TABLE_OF_TOY = {"a": "dark", "b": "dark", "c": "bright", "d": "bright", "unused": "x"}


def test_the_table_of_cifar100() -> None:
    assert len(SUPERCLASSES) == 20 and {len(names) for names in SUPERCLASSES.values()} == {5}
    assert len(set(TABLE)) == 101 and list(SUPERCLASSES) == sorted(SUPERCLASSES)  # with the other name of crab
    assert TABLE["pickup_truck"] == "vehicles_1" and TABLE["cra"] == TABLE["crab"]


def test_a_superclass_is_a_task_of_its_name(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "superclasses", table=TABLE_OF_TOY)
    assert [(task.name, task.classes) for task in tasks] == [("bright", ("c", "d")), ("dark", ("a", "b"))]
    assert set(data.subset("train").labels[tasks[0].indices["train"]].tolist()) == {2, 3}
    reverse, _ = divided(tmp_path, "superclasses", table=TABLE_OF_TOY, task_order=["dark", "bright"])
    assert [task.name for task in reverse] == ["dark", "bright"]


def test_superclasses_as_classes_of_domains(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "superclasses", table=TABLE_OF_TOY, tasks="domain")
    assert [task.classes for task in tasks] == [("bright", "dark")] * 2 and classes_are_equal(tasks)
    first = tasks[0].data(data, ("dark", "bright"), seed=0).subset("train")
    before = data.subset("train").labels[tasks[0].indices["train"]]
    assert dict(zip(before.tolist(), first.labels.tolist())) == {0: 0, 2: 1}  # a is dark, c bright


def test_a_table_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("class,superclass\n" + "\n".join(f"{a},{b}" for a, b in TABLE_OF_TOY.items()))
    tasks, _ = divided(tmp_path, "superclasses", table=str(path))
    assert [task.name for task in tasks] == ["bright", "dark"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"stream.table \(the superclasses of CIFAR-100\) has no superclass for 4 class\(es\), such as 'a'"),
        ({"table": {"a": "x", "b": "x", "c": "x"}}, "stream.table has no superclass for 1 class.*'d'"),
        ({"table": {"a": "x", "b": "x", "c": "x", "d": "y"}, "tasks": "domain"}, "'y' has 1 and 'x' 3"),
    ],
)
def test_tables_that_do_not_fit(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=message):
        divided(tmp_path, "superclasses", **keys)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fine,coarse\na,x\n", "no rows with the columns class and superclass"),
        ("class,superclass\na,x\na,y\n", "line 3: 'a' has two superclasses"),
        ("class,superclass\na,\n", "line 2: class or superclass is empty"),
        (None, "cannot be read"),
    ],
)
def test_files_that_hold_no_table(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ContinualError, match=rf"stream.table: .*table.csv.*{message}"):
        divided(tmp_path, "superclasses", table=str(path))


# Images


def test_parts_of_images(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "images", count=4)
    assert [len(task.indices["train"]) for task in tasks] == [9] * 4
    parts = [set(ids(data, task)) for task in tasks]
    assert set().union(*parts) == set(data.subset("train").ids) and sum(map(len, parts)) == 36
    for task in tasks:
        assert task.classes == ("a", "b", "c", "d")
        counts = np.bincount(data.subset("train").labels[task.indices["train"]])
        assert counts.max() - counts.min() <= 1  # stratified by class
        assert ids(data, task, "test") == data.subset("test").ids
    other, _ = divided(tmp_path, "images", count=4, order_seed=1)
    assert set(ids(data, other[0])) != parts[0]


def test_images_without_labels(tmp_path: Path) -> None:
    tasks, _ = divided(tmp_path, "images", {"labeled": False}, count=3)
    assert [task.classes for task in tasks] == [()] * 3
    assert [len(task.indices["train"]) for task in tasks] == [12, 12, 12]


def test_more_parts_than_images(tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=r"stream\.count: 37 tasks of 36 training images"):
        divided(tmp_path, "images", count=37)


# Domains


def test_domains_from_ids(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "domains", by="folder", pattern=r"(\d)$")
    assert [task.name for task in tasks] == list("0123456789")
    assert ids(data, tasks[1], "test") == ["test/001", "test/011", "test/021"]
    assert tasks[0].classes == ("a", "b", "c", "d")


def test_domains_from_a_column(tmp_path: Path) -> None:
    tasks, data = divided(tmp_path, "domains", own(Cameras), by="column", column="camera")
    assert [task.name for task in tasks] == ["left", "right", "top"]
    assert all(int(id[-2:]) % 3 == 2 for id in ids(data, tasks[2], "val"))


def test_domains_by_recipe(tmp_path: Path) -> None:
    recipes = {"plain": [], "noisy": [{"type": "GaussianNoise", "std": [0.2, 0.3], "p": 1.0}]}
    tasks, data = divided(tmp_path, "domains", by="recipe", recipes=recipes)
    assert [task.name for task in tasks] == ["plain", "noisy"]
    plain, noisy = (task.data(data, task.classes, 0) for task in tasks)
    inner = data.subset("test")
    for index in (0, 3):
        assert (plain.subset("test")[index].image == inner[index].image).all()
        changed = noisy.subset("test")[index]
        assert changed.id == f"noisy/{inner.ids[index]}" and changed.label == inner[index].label
        assert changed.image.shape == inner[index].image.shape and changed.image.dtype == np.uint8
        assert not (changed.image == inner[index].image).all()
    again, _ = divided(
        tmp_path, "domains", by="recipe", recipes=dict(reversed(recipes.items())), task_order=["noisy", "plain"]
    )
    same = again[0].data(data, again[0].classes, 1).subset("test")
    assert (
        same[3].image == noisy.subset("test")[3].image
    ).all()  # whatever the order, the seed of the run, the process
    recipes["noisy"][0]["std"] = [0.3, 0.4]  # type: ignore[index]
    other, _ = divided(tmp_path, "domains", by="recipe", recipes=recipes)
    assert other[1].data(data, other[1].classes, 0).fingerprint() != noisy.fingerprint()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_recipe_keeps_the_depth_of_images(kind: type[np.unsignedinteger]) -> None:
    white = np.iinfo(kind).max
    image = np.array([[[0], [white // 3], [white]]], dtype=kind)
    inner = type("One", (), {"ids": ["x"], "labels": [2], "__getitem__": lambda self, index: Sample(image, 2, "x")})()
    invert = Op.model_validate({"type": "RandomInvert", "p": 1.0})
    changed = RecipeSamples(inner, "negative", [invert], seed=0)[0]
    assert changed.image.dtype == kind and changed.image.shape == (1, 3, 1)
    assert (changed.image == white - image).all() and changed.id == "negative/x"


def test_a_recipe_on_the_device(tmp_path: Path) -> None:
    keys = {"by": "recipe", "recipes": {"a": [], "b": [{"type": "RandomInvert", "p": 1.0}]}}
    settings = settings_of(tmp_path, "domains", keys, data={"on_device": True})
    data = make_data(settings)
    first, second = (task.data(data, task.classes, 0) for task in stream_in(settings).tasks(data))
    batches = [next(iter(part.eval_loader("test"))) for part in (first, second)]
    assert (batches[0].images == next(iter(data.eval_loader("test"))).images).all()
    assert not (batches[0].images == batches[1].images).all()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"by": "folder", "level": 3}, r"stream.level 3: the id 'train/000' has the parts"),
        ({"by": "folder", "pattern": "(x)"}, r"stream.pattern '\(x\)' finds nothing in the id 'train/000'"),
        ({"by": "folder", "level": 0}, "the task 'test' has no training images"),
        ({"by": "column", "column": "empty"}, "stream.column: 36 images of train have no value, such as train/000"),
    ],
)
def test_domains_that_the_data_does_not_have(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=message):
        divided(tmp_path, "domains", own(Cameras), **keys)


def test_a_source_without_a_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no table, so there is no column 'lens'"):
        divided(tmp_path, "domains", own(Cameras), by="column", column="lens")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"by": "folder"}, "stream.by: by: folder needs level or pattern"),
        ({"by": "folder", "level": 0, "pattern": "(a)"}, "stream.pattern: by: folder needs"),
        ({"by": "column"}, "stream.by: by: column needs column"),
        ({"by": "column", "column": "x", "level": 0}, "stream.level: it belongs to by: folder"),
        ({"by": "folder", "pattern": "ab"}, "stream.pattern: it needs one group"),
        ({"by": "folder", "pattern": "(a"}, "stream.pattern: no regular expression"),
        ({"by": "recipe", "recipes": {}}, "stream.recipes: name at least one domain"),
        ({"by": "recipe", "recipes": {"a": ["RandomResizedCrop"]}}, "stream.recipes.a: RandomResizedCrop needs a size"),
        ({"by": "recipe", "recipes": {"a": ["RandomInvrt"]}}, "stream.recipes.a.0.type: .*RandomInvert"),
    ],
)
def test_settings_of_domains(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path, "domains", keys)


# Manifests


def written(tmp_path: Path, rows: list[dict[str, Any]], name: str = "tasks.csv") -> str:
    path = tmp_path / name
    if name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "task", "split"])
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def of_toy(**tasks: range) -> list[dict[str, Any]]:
    return [{"id": f"train/{number:03d}", "task": task} for task, numbers in tasks.items() for number in numbers]


@pytest.mark.parametrize("name", ["tasks.csv", "tasks.json"])
def test_a_manifest(name: str, tmp_path: Path) -> None:
    rows = [*of_toy(night=range(20, 36), day=range(20)), {"id": "test/001", "task": "day", "split": "test"}]
    rows += [{"id": f"test/{number:03d}", "task": "night"} for number in range(2, 23)]
    rows += [{"id": "test/000", "task": "day"}]
    tasks, data = divided(tmp_path, "manifest", file=written(tmp_path, rows, name))
    assert [task.name for task in tasks] == ["night", "day"]
    assert ids(data, tasks[1], "test") == ["test/000", "test/001"]
    assert ids(data, tasks[1]) == [f"train/{number:03d}" for number in range(20)]
    assert len(tasks[0].indices["val"]) == SIZES["val"]  # the file names none of val: those of the task's classes


def test_a_manifest_of_some_images(tmp_path: Path) -> None:
    file = written(tmp_path, of_toy(day=range(10), night=range(20, 30)))
    with pytest.raises(ContinualError, match=r"no task for 16 image\(s\), such as train/010.* of train; partial: true"):
        divided(tmp_path, "manifest", file=file)
    tasks, data = divided(tmp_path, "manifest", file=file, partial=True)
    assert "train: 16 images in no task" in task_lines(tasks, data)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "train/900", "task": "a"}], r"the data has no 1 image\(s\), such as train/900"),
        ([{"id": "train/000", "task": "a", "split": "test"}], r"train/000 \(test\)"),
        ([{"id": "train/000", "task": "a"}, {"id": "train/000", "task": "a"}], "row 2: train/000 is there twice"),
        (
            [{"id": "train/000", "task": "a"}, {"id": "train/000", "task": "b", "split": "train"}],
            "train/000 is in two tasks, 'a' and 'b'",
        ),
        ([{"id": "train/000", "task": ""}], "row 1 has no id and task"),
        ([{"id": "train/000", "task": "a", "split": "dev"}], "row 1: split is train, val or test, not 'dev'"),
        ([], "it has no rows"),
    ],
)
def test_manifests_that_are_wrong(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ContinualError, match=rf"stream.file: .*tasks.csv: .*{message}"):
        divided(tmp_path, "manifest", file=written(tmp_path, rows), partial=True)


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    for name, text in {"a.json": '{"id": 1}', "b.json": "[", "c.txt": "", "d.csv": None}.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ContinualError, match=rf"stream.file: .*{name}: "):
            divided(tmp_path, "manifest", file=str(tmp_path / name))


# Online

NO_MODEL = "teacher.networks: .*so there is no model before it"
ONLINE = {"training": {"schedule": {"type": "constant", "warmup": 0}}, "strategy": {"type": "sequential"}}


def online(tmp_path: Path, **keys: Any) -> tuple[list[Task], Any]:
    settings = settings_of(tmp_path, "online", keys, **ONLINE)
    data = make_data(settings)
    return stream_in(settings).tasks(data), data


def test_blurred_boundaries(tmp_path: Path) -> None:
    tasks, data = online(tmp_path, count=4, disjoint=0.25, blur=0.4)
    labels = data.subset("train").labels
    together = np.concatenate([task.indices["train"] for task in tasks])
    assert sorted(together.tolist()) == list(range(36))  # each image once
    in_tasks = {name: [n for n, task in enumerate(tasks) if name in task.classes] for name in "abcd"}
    assert sum(len(numbers) == 1 for numbers in in_tasks.values()) == 1  # a quarter of the classes is disjoint
    for home, name in enumerate("abcd"):
        assert home in in_tasks[name] and set(in_tasks[name]) <= {home - 1, home, home + 1}
        if len(in_tasks[name]) > 1:
            stayed = (labels[tasks[home].indices["train"]] == home).sum()
            assert stayed == 9 - round(0.4 * 9)
    for task in tasks:
        test = {data.classes[label] for label in data.subset("test").labels[task.indices["test"]]}
        assert test == set(task.classes)  # those of a shared class count for each of its tasks
    spread, _ = online(tmp_path, count=4, disjoint=0, blur=0.4, spread="all")
    assert all(len(task.classes) == 4 for task in spread)


@pytest.mark.parametrize("keys", [{"disjoint": 1.0}, {"blur": 0.0}])
def test_without_blur_the_tasks_are_those_of_classes(keys: dict[str, float], tmp_path: Path) -> None:
    tasks, _ = online(tmp_path, count=2, **keys)
    plain = open_stream(stream(tmp_path))
    for task, other in zip(tasks, plain, strict=True):
        assert task.classes == other.classes
        assert all((task.indices[split] == other.indices[split]).all() for split in ("train", "val", "test"))


def test_one_task_has_no_neighbor(tmp_path: Path) -> None:
    tasks, _ = online(tmp_path, count=1, disjoint=0.0, blur=0.9)
    assert len(tasks) == 1 and len(tasks[0].indices["train"]) == 36


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"epochs": 2}}, "training.epochs: stream online allows 1 pass over the images, not 2"),
        ({"strategy": {"type": "bank"}}, "strategy.type: stream online does not tell where a task ends, and bank"),
        ({"teacher": {"networks": [{"model": "previous"}]}, "objectives": [{"type": "ce"}, {"type": "kd"}]}, NO_MODEL),
        ({"training": {"schedule": {"type": "cosine"}}}, "training.schedule: .*type: constant, warmup: 0"),
        ({"training": {"schedule": {"warmup": 0.5}}}, "training.schedule: .*type: constant, warmup: 0"),
    ],
)
def test_what_would_reveal_where_a_task_ends(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(tmp_path, "online", {"count": 2}, **merge_trees(ONLINE, changes))


# Data at the limits


def test_one_image_of_each_class(tmp_path: Path) -> None:
    for kind, keys in {"classes": {"step": 2}, "online": {"count": 2}, "images": {"count": 2}}.items():
        changes = ONLINE if kind == "online" else {}
        settings = settings_of(tmp_path, kind, keys, data={"source": own(OneEach)}, **changes)
        tasks = open_stream(settings)
        assert [len(task.indices["train"]) for task in tasks] == [2, 2], kind
        assert all("val" not in task.indices for task in tasks)  # nothing can be held out


def test_hidden_labels_are_in_no_task(tmp_path: Path) -> None:
    settings = stream(tmp_path, data={"labels_per_class": 3})
    data = make_data(settings)
    tasks = stream_in(settings).tasks(data)
    assert [len(task.indices["train"]) for task in tasks] == [6, 6]
    assert task_lines(tasks, data)[-1] == "train: 24 images in no task"
    with pytest.raises(ContinualError, match=r"no training image has one \(data.labels_per_class 0\)"):
        open_stream(stream(tmp_path, data={"labels_per_class": 0}))


@pytest.mark.parametrize("kind", ["classes", "superclasses", "domains", "online"])
def test_streams_that_need_labels(kind: str, tmp_path: Path) -> None:
    keys = {"domains": {"by": "folder", "level": 0}, "superclasses": {}}.get(kind, {"count": 2})
    changes = ONLINE if kind == "online" else {}
    unlabeled = settings_of(tmp_path, kind, keys, data={"source": {"labeled": False}}, **changes)
    with pytest.raises(ContinualError, match=f"stream.type: {kind} needs a source with class names; images divides"):
        open_stream(unlabeled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"heads, inference and controls.heads read features of labeled images, and the task 'task-1' has none"),
        (
            {"heads": [], "inference": [], "controls": {"heads": False}},
            "task-1/student: objectives: ce learn from labels, and no image of the task has one",
        ),
    ],
)
def test_what_needs_labels_is_refused_before_training(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "images",
        {"count": 2},
        data={"source": {"labeled": False}},
        strategy={"type": "sequential"},
        **changes,
    )
    with StopSignal() as stop, pytest.raises(UserError, match=message):
        check_stages(settings.plan(), RunContext.of(settings, stop))


def test_what_the_opening_says(tmp_path: Path) -> None:
    settings = stream(tmp_path, stream={"count": 4})
    assert settings.describe(make_data(settings))[:2] == [
        "tasks: 4",
        "  task-1: 9 training images, 5 for validation, 6 for test, 1 class: a",
    ]
    many = [Task(f"t{number}", tuple("abcdefgh"), {"train": np.arange(2)}) for number in range(14)]
    lines = task_lines(many, make_data(settings))
    assert lines[:2] == ["tasks: 14 with the same 8 classes: a, b, c, d, e, f …", "  t0: 2 training images"]
    assert lines[13] == "  … 2 more tasks" and lines[14] == "train: 34 images in no task"


def test_the_data_command_shows_the_tasks(tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    keys = {"count": 2, "disjoint": 0.0, "blur": 0.4}
    show_data(settings_of(tmp_path, "online", keys, **ONLINE), console, to=None, images=1, decode=False)
    rows = [line.split() for line in console.export_text().splitlines() if line.startswith(" task")]
    assert rows[0] == ["task", "train", "val", "test", "classes"]
    assert rows[1] == ["task-1", "18", "9", "23", "4", "classes:", "a,", "b,", "c,", "d"]
