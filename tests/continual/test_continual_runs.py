"""Whole streams: what a bank keeps, what sequential training loses, and that no stage reads another task."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from toy_stream import isolated, learn, learn_only, results, rewrite_delta, stream

from distill.config import validate_tree
from distill.continual.scores import TaskScores
from distill.continual.task import Task
from distill.data.base import DataError, Split
from distill.data.experiment_data import ExperimentData
from distill.data.split import Subset
from distill.export.checksummed import ExportError
from distill.report.items import Check
from distill.run.context import RunContext
from distill.run.folder import RunFolder, read_tree
from distill.run.runner import load_finished
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.signals import StopSignal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stream with a bank and sequential training as its control; no stage reads another task."""
    settings = stream(tmp_path_factory.mktemp("stream"), controls={"sequential": True})
    with isolated(settings) as stages:
        folder = learn(settings)
    of_task = ("features", "heads", "student", "student-test", "sequential", "sequential-test")
    assert stages == {f"task-{n}/{name}" for n in (1, 2) for name in of_task} | {
        "controls",
        "export",
        "summary",
        "report",
    }
    return folder


def test_a_bank_forgets_nothing(run: Path) -> None:
    measured = results(run)
    assert measured["student, task: forgetting"] == measured["student, task: backward_transfer"] == 0
    checks = json.loads((run / "results.json").read_text())["summary"]["verification"]
    passed = {check["name"]: check["passed"] for check in checks}
    assert passed == {"student: logits of earlier tasks": True, "bank in a new process = networks of the run": True}


@pytest.mark.parametrize("change", ["nothing", "a byte of the file", "the whole file", "logits before"])
def test_other_bits_of_an_earlier_task_are_noticed(run: Path, tmp_path: Path, change: str) -> None:
    """A damaged file is an error; a network that is another one, or logits that were others, fail the check."""
    copy = tmp_path / "stream"
    shutil.copytree(run, copy)
    delta, predictions = copy / "task-1/student/delta", copy / "task-1/student-test/predictions.safetensors"
    if change == "a byte of the file":
        content = bytearray((delta / "delta.safetensors").read_bytes())
        content[-1] ^= 1
        (delta / "delta.safetensors").write_bytes(content)
    elif change == "the whole file":
        rewrite_delta(delta, 1.01)
    elif change == "logits before":
        tensors = safetensors.torch.load(predictions.read_bytes())
        tensors["0/logits"][0, 0] = tensors["0/logits"][0, 0].nextafter(torch.tensor(torch.inf))
        predictions.write_bytes(safetensors.torch.save(tensors))
    settings = stream(run.parent, controls={"sequential": True})
    plan = settings.plan()
    number = [stage.name for stage in plan].index("task-2/student-test")
    stage = plan[number]
    with StopSignal() as stop:
        context = replace(RunContext.of(settings, stop), folder=RunFolder(copy))
        assert not load_finished(plan[:number], context)
        if change == "a byte of the file":
            with pytest.raises(ExportError, match=r"delta\.safetensors"):
                stage.run(context, tmp_path)
            return
        output = stage.run(context, tmp_path)
        (check,) = (item for item in stage.report(context, output) if isinstance(item, Check))
    assert check.passed == (change == "nothing")
    assert ("task-1" in check.detail) == (change != "nothing") and "'task-2', 'task-2'" not in check.detail


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


def test_a_stage_that_reads_a_sample_of_another_task_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The streams of these tests run on a source that raises then; here, tasks are made to hold an image too much."""
    original = Task.subset

    def leaking(self: Task, data: ExperimentData, split: Split, classes: Sequence[str]) -> Subset:
        own = original(self, data, split, classes)
        if split != "train":
            return own
        other = next(index for index in range(len(own.samples)) if index not in own.indices)
        return Subset(own.samples, np.append(own.indices, other), np.append(own.labels, own.labels[0]))

    settings = stream(tmp_path)
    with isolated(settings), monkeypatch.context() as patch:
        patch.setattr(Task, "subset", leaking)
        with pytest.raises(DataError, match="AssertionError: task-1/student reads train/00"):
            learn_only(settings)


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
