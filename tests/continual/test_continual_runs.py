"""Whole streams: what a bank keeps, what sequential training loses, and that no stage reads another task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_stream import learn, learn_only, results, stream

from distill.config import validate_tree
from distill.continual.open_stream import open_stream
from distill.continual.scores import TaskScores
from distill.data.base import Sample
from distill.data.split import Subset
from distill.run.folder import read_tree
from distill.stages.learn_task import LearnTask
from distill.training.checkpoints import VerifiedCheckpointIO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stream with a bank and sequential training as its control."""
    return learn(stream(tmp_path_factory.mktemp("stream"), controls={"sequential": True}))


def test_a_bank_forgets_nothing(run: Path) -> None:
    measured = results(run)
    assert measured["student, task: forgetting"] == measured["student, task: backward_transfer"] == 0
    checks = json.loads((run / "results.json").read_text())["summary"]["verification"]
    passed = {check["name"]: check["passed"] for check in checks}
    assert passed == {"student: logits of earlier tasks": True, "bank in a new process = networks of the run": True}


def test_every_model_has_its_matrix(run: Path) -> None:
    summary = json.loads((run / "results.json").read_text())["summary"]
    titles = {(matrix["title"], matrix["section"].rpartition(" ")[2]) for matrix in summary["matrices"]}
    for model in ("slda", "ridge", "ncm", "sequential", "joint head", "sequential head", "student + ncm"):
        assert (model, "class-incremental") in titles, model
    assert {("student", "task-incremental"), ("task heads", "task-incremental")} <= titles
    assert measured_on(run, "sequential", "class") == {"task-1", "task-2"}


def measured_on(run: Path, model: str, setting: str) -> set[str]:
    content = json.loads((run / "task-2/sequential-test/scores.json").read_text())["scores"]
    return set(TaskScores.model_validate(content).scores[model][setting])  # type: ignore[index]


def test_another_order_gives_the_bank_the_same_deltas(run: Path, tmp_path: Path) -> None:
    """Everything random in a task is keyed by its name, so its delta does not depend on what came before it."""
    settings = stream(tmp_path, stream={"task_order": ["task-2", "task-1"]})
    other = learn_only(settings)
    for task in ("task-1", "task-2"):
        first, second = (
            VerifiedCheckpointIO().load_checkpoint(folder / task / "student/fit/result.ckpt")["student"]
            for folder in (run, other)
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_no_stage_reads_a_sample_of_another_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data of a task cannot give other samples; and a stage that learns opens no other training sample."""
    settings = stream(tmp_path, strategy={"type": "sequential"})
    first, second = open_stream(settings)
    allowed: dict[str, set[int]] = {}
    read: list[int] = []
    original = Subset.__getitem__

    def noting(self: Subset, index: int) -> Sample:
        sample = original(self, index)
        if sample.id.startswith("train/"):
            read.append(int(sample.id.removeprefix("train/")))
        return sample

    monkeypatch.setattr(Subset, "__getitem__", noting)
    for task in (first, second):
        allowed[task.name] = set(np.asarray(task.indices["train"]).tolist())
    original_run = LearnTask.run
    seen: dict[str, set[int]] = {}

    def watched(self: LearnTask, *arguments: object) -> object:
        read.clear()
        output = original_run(self, *arguments)  # type: ignore[arg-type]
        seen[self.task.name] = set(read)
        return output

    monkeypatch.setattr(LearnTask, "run", watched)
    learn_only(settings)
    assert seen.keys() == allowed.keys()
    for name, indices in seen.items():
        assert indices and indices <= allowed[name], name


@pytest.mark.parametrize("strategy", ["merge_and_go", "first_task"])
def test_other_strategies(strategy: str, tmp_path: Path) -> None:
    folder = learn(stream(tmp_path, strategy={"type": strategy}, controls={"heads": False}))
    measured = results(folder)
    name = "student + slda, class" if strategy == "first_task" else "student, class"
    assert 0 <= measured[f"{name}: accuracy_micro"] <= 1
    assert validate_tree(read_tree(folder), "config").kind == "continual"


def test_forward_transfer_is_measured_from_the_untrained_student(tmp_path: Path) -> None:
    """Where all tasks have the same classes, a task can be predicted before it is learned."""
    folder = learn(
        stream(tmp_path, strategy={"type": "sequential"}, stream={"type": "images", "count": 2}, heads=[], inference=[])
    )
    start, first = (
        TaskScores.model_validate(json.loads((folder / stage / "scores.json").read_text())["scores"])
        for stage in ("untrained-test", "task-1/student-test")
    )
    before, after = (scores.scores["student"]["domain"]["task-2"] for scores in (start, first))
    expected = after.correct / after.images - before.correct / before.images
    assert results(folder)["student, domain: forward_transfer"] == pytest.approx(expected)
