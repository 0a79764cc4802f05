"""Saves that a kill may meet at any moment, each for a process of its own."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from distill.training.checkpoints import VerifiedCheckpointIO


def save(path: Path, step: int = 1, numbers: int = 1000) -> Path:
    checkpoint = {"step": step, "weights": torch.full((numbers,), float(step))}
    VerifiedCheckpointIO().save_checkpoint(checkpoint, path)
    return path


def save_for_ever(path: Path) -> None:
    for step in range(2, 1_000_000):
        save(path, step, numbers=100_000)


def save_and_die(path: Path, call: str, when: str) -> None:
    """Step 2, with the process killed before or after its first ``os.<call>``."""
    real = getattr(os, call)

    def deadly(*arguments: Any, **options: Any) -> None:
        if when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, call, deadly)
    save(path, 2)
