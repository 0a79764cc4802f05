"""Whole streams whose tasks have the same classes, and online ones whose tasks share some."""

import json
from pathlib import Path
from typing import Any

import pytest
from toy_stream import learn, stream_tree

from distill.config import validate_tree
from distill.continual.scores import TaskScores
from distill.experiments.continual import ContinualExperiment

pytestmark = pytest.mark.slow


def run(output: Path, kind: dict[str, Any], **changes: Any) -> Path:
    settings = validate_tree({**stream_tree(output, **changes), "stream": kind}, "toy stream")
    assert isinstance(settings, ContinualExperiment)
    return learn(settings)


def scores(folder: Path, stage: str) -> TaskScores:
    return TaskScores.model_validate(json.loads((folder / stage / "scores.json").read_text())["scores"])


def test_a_bank_tells_domains_apart(tmp_path: Path) -> None:
    """The means of the classes of each domain tell its images from those of the other, whose classes are the same."""
    recipes = {"plain": [], "black": [{"type": "RandomBrightness", "brightness": [0.0, 0.0], "p": 1.0}]}
    folder = run(tmp_path, {"type": "domains", "by": "recipe", "recipes": recipes}, heads=[{"type": "ncm"}])
    after = scores(folder, "black/student-test").scores
    assert set(after["student"]) == {"task"} and set(after["student + ncm"]) == {"domain"}
    known, inferred = after["student"]["task"], after["student + ncm"]["domain"]
    assert {task: score.correct for task, score in inferred.items()} == {t: s.correct for t, s in known.items()}
    controls = json.loads((folder / "controls/scores.json").read_text())
    assert set(controls[1]["scores"]["joint head"]["domain"]) == {"plain", "black"}


def test_an_online_stream_has_one_row_for_a_class(tmp_path: Path) -> None:
    online = {"type": "online", "count": 2, "disjoint": 0.25, "blur": 0.3}
    changes: dict[str, Any] = {"training": {"schedule": {"type": "constant", "warmup": 0}}}
    folder = run(tmp_path, online, strategy={"type": "sequential"}, heads=[{"type": "ncm"}], **changes)
    first, second = (scores(folder, f"task-{number}/student-test") for number in (1, 2))
    assert set(first.scores["student"]["class"]) == {"task-1"}
    assert set(second.scores["student"]["class"]) == {"task-1", "task-2"}
    manifest = json.loads((folder / "task-2/student/delta/delta.json").read_text())
    assert sorted(manifest["labels"]) == list("abcd") and manifest["num_classes"] == 4
    images = {task: score.images for task, score in second.scores["student"]["class"].items()}
    assert sum(images.values()) > 23  # the test images of a class in two tasks count for both


def test_a_task_of_one_class_has_a_delta_that_changes_nothing(tmp_path: Path) -> None:
    """Cross-entropy with one class has no gradient; the task is learned by its head, and inferred as any other."""
    folder = run(tmp_path, {"type": "classes", "sizes": [1, 3]}, heads=[{"type": "ncm"}], controls={"heads": False})
    manifest = json.loads((folder / "task-1/student/delta/delta.json").read_text())
    assert manifest["unchanged"] and manifest["labels"] == ["a"]
    assert not json.loads((folder / "task-2/student/delta/delta.json").read_text())["unchanged"]
    known = scores(folder, "task-2/student-test").scores["student"]["task"]
    assert known["task-1"].correct == known["task-1"].images == 6
