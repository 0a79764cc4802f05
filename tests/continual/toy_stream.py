"""A stream that is learned in seconds: two tasks of two of the toy experiment's classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from toy_training import Blobs, tree

from distill.config import merge_trees, validate_tree
from distill.continual import serve
from distill.experiments.continual import ContinualExperiment
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
        patch("distill.stages.export_stream.run_fresh", lambda work, _: serve._fresh_process(work)),
        patch("distill.stages.report.write_report", lambda *_: None),
        patch("distill.stages.report.try_report", lambda *_: None),
    ):
        yield


def learn(settings: ContinualExperiment, resume: bool = False, fresh: bool = False) -> Path:
    """Run a stream; returns its folder. The export is verified in a new process only if asked for, for it costs."""
    with ExitStack() as stack:
        if not fresh:
            stack.enter_context(verified_here())
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


class MoreBlobs(Blobs):
    """The toy's images under four other class names."""

    def __init__(self, settings: Blobs.Settings):
        super().__init__(settings)
        self.classes = tuple("efgh")
