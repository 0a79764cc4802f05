"""Superclasses and parts of images: what each task holds, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_kinds import divided, ids

from distill.continual.cifar100 import SUPERCLASSES, TABLE
from distill.continual.errors import ContinualError
from distill.continual.task import classes_are_equal, numbered, union

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
    joint = union(tasks).data(data, ("bright", "dark"), seed=0).subset("train")
    assert sorted(joint.labels.tolist()) == [0] * 18 + [1] * 18, "what joins the tasks has the labels of each"
    with pytest.raises(ContinualError, match="'a' is 'dark' and 'x' in two tasks"):
        union([tasks[0], replace(tasks[1], renamed={"a": "x"})])


def test_the_name_of_a_task_does_not_depend_on_how_many_there_are() -> None:
    assert numbered(120)[:10] == numbered(10) and numbered(10)[0] == numbered(1)[0] == "task-1"


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
