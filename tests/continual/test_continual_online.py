"""Online streams, and streams of data at the limits."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from stream_kinds import ONLINE, OneEach, own, settings_of
from toy_stream import stream

from augment.base import UserError
from distill.commands.data import show_data
from distill.config import merge_trees
from distill.continual.errors import ContinualError
from distill.continual.open_stream import open_stream, stream_in
from distill.continual.summary import task_lines
from distill.continual.task import Task
from distill.run.context import RunContext, make_data
from distill.run.runner import check_stages
from distill.training.signals import StopSignal

# Online
NO_MODEL = "teacher.networks: .*so there is no model before it"


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
        *(
            ({"strategy": {"type": kind}}, f"strategy.type: stream online does not tell where a task ends, and {kind}")
            for kind in ("bank", "merge_and_go", "stack", "merge", "first_task", "anew")
        ),
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
