"""Runs as processes of their own, that can be killed, waited for, and searched for leftovers."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_training import tree
from warm_server import warm_server

from distill.training.checkpoints import VerifiedCheckpointIO, steps_of

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass
class Run:
    """A run, in a process group of its own."""

    folder: Path
    process: Any
    """``subprocess.Popen`` or ``multiprocessing.Process``."""

    @property
    def output(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.txt"

    def wait(self, seconds: float = 120) -> int:
        """The exit status; a run that does not end in time is killed, and the test fails."""
        self._until(lambda: self._status() is not None, seconds)
        return self._status()  # type: ignore[return-value]

    def _status(self) -> int | None:
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def ended(self, seconds: float = 60) -> bool:
        """Whether no process of the group is left, after waiting for it."""
        self._until(lambda: not self._group_lives(), seconds)
        return True

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def signal_all(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def after_steps(self, count: int) -> None:
        self._until(lambda: len(self.trace()) >= count or self._status() is not None, 120)

    def after_checkpoint(self) -> None:
        self._until(lambda: steps_of(self.folder / "student") or self._status() is not None, 120)

    def _until(self, condition: Callable[[], Any], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self.signal_all(signal.SIGKILL)
                pytest.fail(f"nothing came of it in {seconds} s:\n{self.output.read_text()}")
            time.sleep(0.02)

    @property
    def status(self) -> str:
        return json.loads((self.folder / "run.json").read_text())["status"]

    def trace(self, rank: int = 0) -> list[tuple[int, list[int]]]:
        """(epoch, ids) of the steps that a rank began."""
        path = self.folder.parent / f"{self.folder.name}.trace"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [(epoch, ids) for at, epoch, ids in lines if at == rank]

    def student(self) -> dict[str, torch.Tensor]:
        return VerifiedCheckpointIO().load_checkpoint(self.folder / "student" / "result.ckpt")["student"]


class StartRun:
    """Starts ``faulty_run.py``, or ``train.py``, in a warm process, or ``train.py`` in a fresh interpreter."""

    def __init__(self, output: Path):
        self.output = output
        self.started: list[Run] = []

    def __call__(
        self,
        *arguments: str,
        fault: str = "",
        fresh: bool = False,
        itself: bool = False,
        spare: bool = False,
        name: str = "toy",
        **changes: Any,
    ) -> Run:
        config = self.output / f"{name}.yaml"
        controls = {"linear_probe": False, "labels_only": False}
        config.write_text(yaml.safe_dump(tree(self.output, name=name, **{"controls": controls, **changes})))
        run = Run(self.output / name, None)
        paths = os.pathsep.join(map(str, (HERE, HERE.parent, ROOT)))
        environment = {"FAULT": fault, "TRACE": str(self.output / f"{name}.trace"), "PYTHONPATH": paths}
        command = [str(config), *arguments]
        if fresh:
            with run.output.open("a") as file:
                run.process = subprocess.Popen(
                    [sys.executable, str(ROOT / "train.py"), *command],
                    env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
        else:
            from faulty_run import forked, train_py

            start = train_py if itself else partial(forked, spare=spare)
            run.process = warm_server().Process(target=start, args=(command, environment, str(run.output)))
            run.process.start()
        self.started.append(run)
        return run

    def end(self) -> None:
        for run in self.started:
            if run._group_lives():
                run.signal_all(signal.SIGKILL)
