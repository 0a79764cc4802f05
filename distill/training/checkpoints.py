"""Checkpoints that survive: whole or absent, checked by SHA-256, the previous one kept, the student's side only."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from augment.errors import ExplainedError
from distill.files import write_atomic

logger = logging.getLogger(__name__)

KEPT = 2


class CheckpointError(ExplainedError, RuntimeError):
    """A checkpoint cannot be read or written; the text names the file."""


class VerifiedCheckpointIO(CheckpointIO):
    """Writes ``NAME.ckpt`` and beside it ``NAME.ckpt.sha256``, in the format of ``sha256sum``; reads only what matches.

    Checkpoints hold tensors and plain containers and are read with ``weights_only=True``, so a file made by someone
    else cannot run code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        try:
            digest = write_atomic(path, buffer.getvalue())
            write_atomic(_digest_file(path), f"{digest}  {path.name}\n".encode())
        except OSError as error:
            raise CheckpointError(f"{path}: the checkpoint was not saved ({error}); earlier ones are intact") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            expected = _digest_file(path).read_text().split()[0]
        except (OSError, IndexError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{path}: its {_digest_file(path).name} is missing or empty, so it is unproved"
            ) from error
        if hashlib.sha256(data).hexdigest() != expected:
            raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one in {_digest_file(path).name}")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{path}: refused, it is no file of plain tensors: {error}") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        _digest_file(Path(path)).unlink(missing_ok=True)


def _digest_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.ckpt"


def steps_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove all but the newest ``keep``; called only once a new one is safely on the disk."""
    for path in steps_of(folder)[keep:]:
        VerifiedCheckpointIO().remove_checkpoint(path)


def newest_good(folder: Path) -> Path | None:
    """The newest checkpoint that can be trusted; damaged ones are named and passed over.

    Raises:
        CheckpointError: there are checkpoints, and not one of them is good: starting afresh must be somebody's choice.
    """
    damaged = []
    for path in steps_of(folder):
        try:
            VerifiedCheckpointIO().load_checkpoint(path)
        except CheckpointError as error:
            damaged.append(str(error))
            logger.warning("%s; trying the one before it", error)
        else:
            return path
    if damaged:
        raise CheckpointError("no checkpoint is usable:\n  " + "\n  ".join(damaged))
    return None
