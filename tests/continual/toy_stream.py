"""A stream that is learned in seconds: two tasks of two of the toy experiment's classes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
from rich.console import Console
from toy_training import FIRST, Blobs, BlobSamples, tree
from warm_server import warm_server

from distill.config import merge_trees, validate_tree
from distill.continual import serve
from distill.continual.open_stream import open_stream
from distill.continual.task import Task
from distill.data.base import Sample, Samples, Split
from distill.experiments.continual import ContinualExperiment
from distill.export.checksummed import write_checksummed
from distill.export.delta.io import MANIFEST, TENSORS, read_delta
from distill.files import write_atomic
from distill.run import runner
from distill.run.runner import run_plan
from distill.run.stage import Stage
from distill.stages.learn_task import LearnTask
from distill.stages.pretrained_teacher import PretrainedTeacher


def stream_tree(output: Path, **changes: Any) -> dict[str, Any]:
    """The config of the stream; one epoch a task, labels alone, without views that cost time."""
    plain = tree(output, name="stream")
    for key in ("teacher", "export"):
        del plain[key]
    own = {
        "kind": "continual",
        "stream": {"type": "classes", "count": 2},
        "objectives": [{"type": "ce"}],
        "augment": {"student": ["RandomHorizontalFlip"]},
        "training": {"epochs": 1, "ema": None},
    }
    return merge_trees(merge_trees(plain, own), changes)


def stream(output: Path, **changes: Any) -> ContinualExperiment:
    """The typed experiment of :func:`stream_tree`."""
    settings = validate_tree(stream_tree(output, **changes), "toy stream")
    assert isinstance(settings, ContinualExperiment)
    return settings


@contextmanager
def verified_here() -> Iterator[None]:
    """Exports are verified in this process, and no figures are drawn: both cost seconds and have their own tests."""
    with (
        patch("distill.stages.export_stream.fresh_process", _served_here),
        patch("distill.stages.report.write_report", lambda *_: None),
        patch("distill.stages.report.try_report", lambda *_: None),
    ):
        yield


@contextmanager
def _served_here(work: Path, _: str) -> Iterator[None]:
    yield
    serve._fresh_process(work)


@contextmanager
def verified_apart() -> Iterator[None]:
    """Exports are verified in a process that is spared the seconds of its imports."""
    with patch("distill.stages.export_stream.fresh_process", _served_apart):
        yield


@contextmanager
def _served_apart(work: Path, module: str) -> Iterator[None]:
    """``python -m MODULE WORK``, in a process that has imported everything and knows nothing of the run."""
    child = warm_server().Process(target=_run_module, args=(module, str(work)))
    child.start()
    try:
        yield
        child.join(120)
    finally:
        child.kill()
    child.join()
    assert child.exitcode == 0


def _run_module(module: str, *arguments: str) -> None:
    sys.modules.pop(module, None)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def learn(settings: ContinualExperiment, resume: bool = False, apart: bool = False) -> Path:
    """Run a stream; returns its folder. The export is verified in a process of its own, and figures are drawn, only if
    asked for.
    """
    with verified_apart() if apart else verified_here():
        tree = settings.model_dump(mode="json")
        return run_plan(settings, settings.plan(), tree, resume=resume, console=Console(quiet=True))


def results(run: Path) -> dict[str, float]:
    """Name of a number that a run reports → its value."""
    content = json.loads((run / "results.json").read_text())
    return {result["name"]: result["value"] for result in content["results"]}


def learn_only(settings: ContinualExperiment, name: str = "student", resume: bool = False) -> Path:
    """Run the stages of one learner alone, with those of its teacher; returns the run's folder."""
    stages = [stage for stage in settings.plan() if _of_learner(stage, name)]
    return run_plan(settings, stages, settings.model_dump(mode="json"), resume=resume, console=Console(quiet=True))


def _of_learner(stage: Stage[Any], name: str) -> bool:
    return isinstance(stage, PretrainedTeacher) or (isinstance(stage, LearnTask) and stage.name.endswith(f"/{name}"))


@contextmanager
def isolated(settings: ContinualExperiment) -> Iterator[set[str]]:
    """Within it, the source raises on each image that a stage must not see.

    A stage that has a task reads training and validation images of that task alone. Any other stage reads no training
    image, and validation images of the tasks so far. Test images are those of the tasks so far. (The images of a memory
    are in its file, so that no stage reads them from the source.)

    Yields:
        Names of the stages that have run.
    """
    tasks = open_stream(settings)
    numbers = {task.name: number for number, task in enumerate(tasks, 1)}
    allowed: dict[int, set[int]] | None = None
    of_stage, stages = "", set[str]()
    finish, read = runner._finish, BlobSamples.__getitem__

    def guarded_finish(stage: Stage[Any], *arguments: Any) -> Any:
        nonlocal allowed, of_stage
        of_stage, own = stage.name, getattr(stage, "task", None)
        seen = tasks[: numbers.get(stage.name.partition("/")[0], len(tasks))]
        readable: dict[Split, Sequence[Task]] = {
            "train": [] if own is None else [own],
            "val": seen if own is None else [own],
            "test": seen,
        }
        allowed = {
            FIRST[split]: {int(row) for task in of_split for row in task.indices[split]}
            for split, of_split in readable.items()
        }
        stages.add(stage.name)
        try:
            return finish(stage, *arguments)
        finally:
            allowed = None

    def guarded_read(self: BlobSamples, index: int) -> Sample:
        if allowed is not None and index not in allowed[self.first]:
            raise AssertionError(f"{of_stage} reads {self.ids[index]}")
        return read(self, index)

    with patch.object(runner, "_finish", guarded_finish), patch.object(BlobSamples, "__getitem__", guarded_read):
        yield stages


def rewrite_delta(folder: Path, factor: float) -> None:
    """Multiply the numbers of a delta file, head included, by a factor; its checksums fit again."""
    manifest, tensors = read_delta(folder)
    changed = {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    sha256 = write_atomic(folder / TENSORS, safetensors.torch.save(changed))
    write_checksummed(folder / MANIFEST, manifest.model_copy(update={"sha256": sha256}))


class MoreBlobs(Blobs):
    """The toy's images under four other class names, and other ids."""

    def __init__(self, settings: Blobs.Settings):
        super().__init__(settings)
        self.classes = tuple("efgh")

    def split(self, name: Split) -> Samples:
        samples = BlobSamples(name, self.settings, self.channels)
        samples.ids = [f"more/{id}" for id in samples.ids]
        return samples
