"""Whole runs as processes of their own: stopped by signals, killed, resumed."""

import os
import signal
import time
from pathlib import Path

import pytest
from processes import StartRun
from toy_training import STEPS, assert_bit_equal, experiment, raising, straight_fit, student_fit

from distill.training.checkpoints import newest_good
from distill.training.signals import Interrupted, StopSignal

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_every_signal_saves_and_says_which(number: signal.Signals, status: int, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match=number.name) as error:
        student_fit(experiment(tmp_path), tmp_path / "fit", raising(number, 3))
    assert error.value.exit_code == status
    assert newest_good(tmp_path / "fit") == tmp_path / "fit" / "step-00000004.ckpt"


def test_no_handler_of_lightning_is_left_while_steps_are_made(tmp_path: Path) -> None:
    """Its handler of SIGTERM exchanges a tensor between ranks in the middle of a step, which can wait for ever."""
    handlers: list[object] = []
    fault = lambda module: handlers.extend(signal.getsignal(number) for number, _ in SIGNALS)  # noqa: E731
    student_fit(experiment(tmp_path, training={"epochs": 1}), tmp_path / "fit", fault)
    assert len(handlers) == STEPS * len(SIGNALS)
    assert all(isinstance(getattr(handler, "__self__", None), StopSignal) for handler in handlers)


@pytest.mark.slow
def test_a_run_stopped_by_each_signal_and_resumed(tmp_path: Path, start: StartRun) -> None:
    straight = straight_fit(experiment(tmp_path))
    for position, (number, status) in enumerate(SIGNALS):
        run = start(*(["--resume"] if position else []), fault=f"{2 * position} 0 {int(number)}")
        assert run.wait() == status, run.output.read_text()
        assert run.status == "interrupted" and run.ended()
        output = run.output.read_text()
        assert (
            f"stopped by {number.name}" in output
            and "toy is saved; the same command with --resume continues it" in output
        )
    assert run.trace() == straight.seen[:7], "in the middle of the second epoch"
    run = start("--resume", fault="-1 0 0")
    assert run.wait() == 0 and run.status == "finished"
    assert run.trace() == straight.seen
    assert_bit_equal(run.student(), straight.weights)


@pytest.mark.slow
def test_kill_9_and_resume(tmp_path: Path, start: StartRun) -> None:
    straight = straight_fit(experiment(tmp_path))
    run = start(fault=f"{STEPS + 3} 0 {int(signal.SIGKILL)}")
    assert run.wait() == -signal.SIGKILL and run.ended()
    assert run.status == "running" and run.trace() == straight.seen[: STEPS + 4]
    run = start("--resume", fault="-1 0 0")
    assert run.wait() == 0
    assert run.trace()[STEPS + 4 :] == straight.seen[STEPS:], "from the end of the epoch before"
    assert_bit_equal(run.student(), straight.weights)


@pytest.mark.slow
def test_a_group_of_processes_is_stopped_while_data_is_read(tmp_path: Path, start: StartRun) -> None:
    """What a scheduler does: SIGTERM to every process of the job, loader workers too."""
    straight = straight_fit(experiment(tmp_path))
    slow = {"workers": 1, "source": {"pause": 0.12}}
    run = start(fault="-1 0 0", data=slow)
    run.after_steps(2)
    time.sleep(0.5)  # the step is over, the next batch takes a second
    run.signal_all(signal.SIGTERM)
    assert run.wait() == 143, run.output.read_text()
    assert run.status == "interrupted" and run.ended()
    resumed = student_fit(experiment(tmp_path), run.folder / "student")
    assert run.trace() + resumed.seen == straight.seen
    assert_bit_equal(resumed.weights, straight.weights)


@pytest.mark.slow
def test_train_py_itself(tmp_path: Path, start: StartRun) -> None:
    run = start(itself=True, training={"epochs": 1000})
    run.after_checkpoint()
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait() == 143, run.output.read_text()
    assert run.status == "interrupted" and run.ended()
    assert newest_good(run.folder / "student") is not None
