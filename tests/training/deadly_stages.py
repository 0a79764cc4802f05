"""``distill train``, in a process of its own that may die between two stages."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from blank_figures import blank_previews

from distill.cli import main
from distill.export import verify
from distill.run import runner
from distill.run.stage import Stage
from distill.stages import report


def train(arguments: list[str], stages: list[type[Stage]], dies: bool, made: str, output: str) -> None:
    """Train.

    Args:
        arguments: of ``distill train``.
        stages: the classes whose runs are noted.
        dies: whether the process is killed as soon as it has recorded a stage as finished.
        made: file to which the name of every stage that is run, not loaded, is appended.
        output: file to which the console's output is appended.
    """
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.modules["__main__"].__spec__ = None
    # What takes a fresh interpreter, or seconds of drawing, has tests of its own.
    verify._run_fresh = verify._fresh_process
    report.write_report = report.try_report = lambda *_: None
    blank_previews(pytest.MonkeyPatch())
    for stage in stages:
        if "run" in vars(stage):
            _note(stage, Path(made))
    if dies:
        _die_after_records()
    main(["train", *arguments])


def _note(stage: Any, made: Path) -> None:
    run = stage.run

    def noted(self: Stage, *arguments: Any) -> Any:
        with made.open("a") as file:
            file.write(f"{self.name}\n")
        return run(self, *arguments)

    stage.run = noted


def _die_after_records() -> None:
    write = runner.write_atomic

    def write_and_die(path: Path, content: bytes) -> str:
        digest = write(path, content)
        if path.name == runner.RECORD:
            os.kill(os.getpid(), signal.SIGKILL)
        return digest

    runner.write_atomic = write_and_die
