"""A stream in a process of its own that kills itself between two tasks, inside the second, or in an evaluation."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from toy_stream import learn, stream, verified_here
from toy_training import watching

from distill.run import runner
from distill.stages.evaluate_task import EvaluateTask
from distill.training.module import Distillation

Point = Literal["between two tasks", "inside a task", "in an evaluation"]
INSIDE = 4
"""Step of the second task, in its second epoch of three steps."""


def changes() -> dict[str, Any]:
    """Of the toy stream: a second task with the first as its teacher, and nothing that this is not about."""
    return {
        "strategy": {"type": "sequential"},
        "teacher": {"networks": [{"model": "previous"}]},
        "objectives": [{"type": "ce"}, {"type": "kd"}],
        "augment": {"policy": "identical", "student": ["RandomHorizontalFlip"]},
        "training": {"epochs": 2, "ema": 0.9},
        "heads": [],
        "inference": [],
        "controls": {"heads": False},
    }


def learn_and_die(output: Path, point: Point, resume: bool, log: str) -> None:
    """Learn the stream in this process, which is killed at a point.

    Args:
        output: folder of runs.
        point: where.
        resume: whether a run goes on.
        log: file to which the console's output is appended.
    """
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.modules["__main__"].__spec__ = None
    with verified_here(), watching(_at_step if point == "inside a task" else None, lambda *_: None):
        if point == "between two tasks":
            _after_record("task-1/student-test")
        if point == "in an evaluation":
            EvaluateTask._scores = _of_the_second_task(EvaluateTask._scores)  # type: ignore[method-assign]
        learn(stream(output, **changes()), resume=resume)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_step(module: Distillation) -> None:
    if module.step.teacher is not None and module.global_step == INSIDE:  # the first task has no model before it
        _die()


def _after_record(stage: str) -> None:
    write = runner.write_atomic

    def write_and_die(path: Path, content: bytes) -> str:
        digest = write(path, content)
        if path.name == runner.RECORD and str(path.parent).endswith(stage):
            _die()
        return digest

    runner.write_atomic = write_and_die


def _of_the_second_task(scores: Any) -> Any:
    def die_or_score(self: EvaluateTask, *arguments: Any) -> Any:
        if len(self.tasks) == 2:
            _die()
        return scores(self, *arguments)

    return die_or_score
