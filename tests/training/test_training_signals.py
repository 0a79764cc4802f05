"""Whole runs as processes of their own: signals, kills, and two ranks."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from toy_training import STEPS, assert_bit_equal, experiment, student_fit, tree

from distill.training.checkpoints import VerifiedCheckpointIO, newest_good
from distill.training.signals import Interrupted

HERE = Path(__file__).parent
TRAIN = HERE.parents[1] / "train.py"


@dataclass
class Run:
    """A run in a process group of its own, so that what it leaves behind can be found."""

    folder: Path
    process: subprocess.Popen
    output: Path

    def wait(self, seconds: float = 100) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            pytest.fail(f"the run did not end in {seconds} s:\n{self.output.read_text()}")

    def ended(self, seconds: float = 20) -> bool:
        """Whether no process of the run's group is left, after waiting for it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

    @property
    def status(self) -> str:
        return json.loads((self.folder / "run.json").read_text())["status"]

    @property
    def student(self) -> dict[str, torch.Tensor]:
        return VerifiedCheckpointIO().load_checkpoint(self.folder / "fits" / "student" / "result.ckpt")["student"]


def start(output: Path, *arguments: str, fault: str = "", name: str = "toy", **changes) -> Run:
    config = output / "toy.yaml"
    controls = {"linear_probe": False, "labels_only": False}
    config.write_text(yaml.safe_dump(tree(output, controls=controls, name=name, **changes)))
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{TRAIN.parent}", "OMP_NUM_THREADS": "1"}
    if fault:
        environment |= {"FAULT": fault, "TRACE": str(output / f"{name}.trace")}
    log = output / f"{name}.txt"
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "faulty_run.py" if fault else TRAIN), str(config), *arguments],
            env=environment,
            cwd=output,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Run(output / name, process, log)


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_every_signal_saves_and_says_which(number: signal.Signals, status: int, tmp_path: Path) -> None:
    from toy_training import raising

    with pytest.raises(Interrupted, match=number.name) as error:
        student_fit(experiment(tmp_path), tmp_path / "fit", raising(number, 3))
    assert error.value.exit_code == status
    assert newest_good(tmp_path / "fit") == tmp_path / "fit" / "step-00000004.ckpt"


@pytest.mark.slow
def test_train_py_stopped_and_resumed_under_each_signal(tmp_path: Path) -> None:
    """One run, stopped four times: from outside, in the middle of an epoch, by every signal."""
    settings = experiment(tmp_path, name="toy", controls={"linear_probe": False, "labels_only": False})
    straight = student_fit(settings, tmp_path / "straight")
    for turn, (number, status) in enumerate(SIGNALS):
        run = start(tmp_path, *(["--resume"] if turn else []), fault=f"{2 * turn} 0 {int(number)}")
        assert run.wait() == status, run.output.read_text()
        assert run.status == "interrupted" and run.ended()
        assert f"stopped by {number.name}" in run.output.read_text()
    seen = [json.loads(line) for line in (tmp_path / "toy.trace").read_text().splitlines()]
    assert seen == [[epoch, ids] for epoch, ids in straight.seen[: len(seen)]] and len(seen) == 7
    resumed = student_fit(settings, run.folder / "fits" / "student")
    assert_bit_equal(resumed.weights, straight.weights)


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path: Path) -> None:
    settings = experiment(tmp_path)
    straight = student_fit(settings, tmp_path / "straight")
    run = start(tmp_path, fault=f"{STEPS + 3} 0 {int(signal.SIGKILL)}")
    assert run.wait() == -signal.SIGKILL and run.ended()
    assert run.status == "running"
    resumed = student_fit(settings, run.folder / "fits" / "student")
    assert resumed.seen == straight.seen[STEPS:], "from the end of the epoch before"
    assert_bit_equal(resumed.weights, straight.weights)
