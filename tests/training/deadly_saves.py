"""Saves that a kill may meet at any moment, each for a process of its own."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch

from distill.training.checkpoints import VerifiedCheckpointIO


def save(path: Path, step: int = 1, numbers: int = 1000) -> Path:
    checkpoint = {"step": step, "weights": torch.full((numbers,), float(step))}
    VerifiedCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def step_of(path: Path) -> int:
    """The step of a checkpoint that must be good."""
    checkpoint = VerifiedCheckpointIO().load_checkpoint(path)
    assert (checkpoint["weights"] == checkpoint["step"]).all()
    return checkpoint["step"]


def kill_savers(path: Path, kills: int, seed: int, report: Path) -> None:
    """Kill as many processes that save without end, one after the other, each at a random moment of its saves.

    The processes are forked from this one, which has one thread and has imported everything. The steps that the
    checkpoint was at after each kill are written to ``report``.
    """
    draw, steps = random.Random(seed), []
    for _ in range(kills):
        replaced = path.stat().st_mtime_ns
        saver = os.fork()
        if saver == 0:
            _save_without_end(path)
        try:
            _until(lambda before=replaced: path.stat().st_mtime_ns != before)  # on a busy machine that takes its time
            time.sleep(draw.uniform(0, 0.05))
        finally:
            os.kill(saver, signal.SIGKILL)
            _, status = os.waitpid(saver, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "it ended before it was killed"
        steps.append(step_of(path))
    report.write_text(json.dumps(steps))


def _save_without_end(path: Path) -> None:
    """It never returns: what is after the fork is the parent's to do."""
    try:
        for step in range(2, 1_000_000):
            save(path, step, numbers=100_000)
    finally:
        os._exit(1)


def _until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing was saved in {seconds} s"
        time.sleep(0.001)


def save_and_die(path: Path, call: str, when: str) -> None:
    """Step 2, with the process killed before or after its first ``os.<call>``."""
    real = getattr(os, call)

    def deadly(*arguments: Any, **options: Any) -> None:
        if when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, deadly)
    save(path, 2)
