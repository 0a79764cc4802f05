"""Manifests of tasks: what each task holds, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from stream_kinds import divided, ids
from toy_training import SIZES

from distill.continual.errors import ContinualError
from distill.continual.summary import task_lines


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
