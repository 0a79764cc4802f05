"""Outputs that runs share: one run computes, the others wait, and whoever dies holds nobody up."""

import io
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from distill.config import validate_tree
from distill.files import write_atomic
from distill.run.context import RunContext
from distill.run.runner import RECORD, finish
from distill.run.shared import HOLDER, LOCK
from distill.run.stage import Stage
from distill.training.signals import Interrupted, StopSignal

HOLD = """
import pathlib, sys, time
from filelock import FileLock

folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
with FileLock(folder / "lock"):
    (folder / "holder.txt").write_text("runs/other")
    print("held", flush=True)
    time.sleep(seconds)
    for hidden in folder.glob("*.hidden"):
        hidden.rename(hidden.with_suffix(""))
"""


@dataclass(frozen=True)
class Shared(Stage[str]):
    """A stage whose output all runs share."""

    made: ClassVar[list[str]] = []

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def store(self, context: RunContext, digest: str) -> Path:
        return context.root / "teachers" / digest

    def run(self, context: RunContext, folder: Path) -> str:
        self.made.append(self.name)
        write_atomic(folder / "text", b"made")
        return "made"

    def load(self, context: RunContext, folder: Path) -> str:
        return (folder / "text").read_text()


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Shared, "made", [])
    tree = {
        "name": "trial",
        "output": str(tmp_path),
        "data": {"source": "digits", "size": 16, "workers": 0},
        "student": {"network": {"model": "test_resnet"}},
        "objectives": [{"type": "ce"}],
        "training": {"accelerator": "cpu"},
    }
    with StopSignal() as stop:
        yield RunContext.of(validate_tree(tree, "test"), stop, Console(file=io.StringIO(), width=300))


@contextmanager
def hold(folder: Path, seconds: float) -> Iterator[subprocess.Popen]:
    """A process that has the lock of a folder; it is killed at the end."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def printed(context: RunContext) -> str:
    assert context.console is not None
    return context.console.file.getvalue()  # type: ignore[attr-defined]


def folder_of(context: RunContext) -> Path:
    """The folder of the finished output, with the record hidden, as if another run were about to write it."""
    finish(Shared("teacher"), context, context.root)
    [folder] = (context.root / "teachers").iterdir()
    (folder / RECORD).rename(folder / f"{RECORD}.hidden")
    Shared.made.clear()
    return folder


def test_an_output_that_another_run_makes_is_waited_for_and_loaded(context: RunContext) -> None:
    folder = folder_of(context)
    with hold(folder, 1.0) as process:
        assert finish(Shared("teacher"), context, context.root) == "made"
        assert process.wait() == 0 and not Shared.made, "the other run has made it"
    assert f"teacher: waiting for runs/other, which makes the same in {folder}" in printed(context)


def test_the_output_of_a_run_that_dies_is_made_by_the_next(context: RunContext) -> None:
    folder = folder_of(context)
    with hold(folder, 100) as process:
        process.send_signal(signal.SIGKILL)
    assert finish(Shared("teacher"), context, context.root) == "made"
    assert Shared.made == ["teacher"] and "waiting" not in printed(context)
    assert (folder / HOLDER).read_text().startswith("process ")


def test_a_finished_output_is_loaded_without_the_lock(context: RunContext) -> None:
    folder = folder_of(context)
    (folder / f"{RECORD}.hidden").rename(folder / RECORD)
    with hold(folder, 100):
        assert finish(Shared("teacher"), context, context.root) == "made" and not Shared.made
    assert (folder / LOCK).exists()


def test_a_signal_ends_the_wait(context: RunContext) -> None:
    folder = folder_of(context)
    context.stop.received = signal.SIGTERM
    with hold(folder, 100), pytest.raises(Interrupted):
        finish(Shared("teacher"), context, context.root)


def test_further_ranks_wait_for_the_first(context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(context)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with hold(folder, 1.0) as process:
        assert finish(Shared("teacher"), context, context.root) == "made"
        assert process.wait() == 0 and not Shared.made and not printed(context)
