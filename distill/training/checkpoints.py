"""Checkpoints: written atomically, verified by SHA-256, two kept; they hold only what training changes."""

from __future__ import annotations

import hashlib
import io
import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from augment.base import UserError
from distill.files import write_atomic

logger = logging.getLogger(__name__)

KEPT = 2
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read or written; the text names the file."""


class VerifiedCheckpointIO(CheckpointIO):
    """Writes torch's format followed by its SHA-256 (32 bytes); reads only files whose hash matches.

    Content and hash are one file, so that one rename replaces both; with two files, a kill between the renames would
    leave a new file with an old hash. ``torch.load`` reads the file too: it ignores bytes after the archive.

    Checkpoints hold tensors and plain containers and are read with ``weights_only=True``, so a file from somebody else
    cannot run code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically.

        Args:
            checkpoint: tensors and plain containers.
            path: the file; an older one is replaced.
            storage_options: Lightning's; not used.

        Raises:
            CheckpointError: the file cannot be written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
        try:
            write_atomic(Path(path), buffer.getvalue())
        except OSError as error:
            raise CheckpointError(f"{path}: the checkpoint was not saved ({error}); earlier ones are intact") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read and verify a checkpoint.

        Args:
            path: the file.
            map_location: Lightning's; not used, tensors are loaded to the CPU.
            weights_only: Lightning's; not used, it is always true.

        Returns:
            What :meth:`save_checkpoint` got.

        Raises:
            CheckpointError: the file cannot be read, is damaged, or holds other objects.
        """
        try:
            data = memoryview(Path(path).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        content, digest = data[:-_DIGEST], data[-_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise CheckpointError(f"{path}: damaged, or no checkpoint: it does not end in the SHA-256 of the rest")
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling what is no pickle raises anything
            raise CheckpointError(f"{path}: refused, it is no file of plain tensors: {error}") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.ckpt"


def steps_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    return sorted(folder.glob("step-*.ckpt"), reverse=True)


def prune(folder: Path, keep: int = KEPT) -> None:
    """Remove all but the newest ``keep`` checkpoints, and temporary files of killed processes; call it after a save."""
    hour_ago = time.time() - 3600  # a younger one may belong to another process that fits the same teacher
    stale = [path for path in folder.glob(".*.ckpt.*.tmp") if path.stat().st_mtime < hour_ago]
    for path in [*steps_of(folder)[keep:], *stale]:
        VerifiedCheckpointIO().remove_checkpoint(path)


def newest_good(folder: Path) -> Path | None:
    """The newest checkpoint that is intact, None if there is no checkpoint; each damaged one is logged and skipped.

    Raises:
        CheckpointError: all checkpoints are damaged. The fit does not start again by itself.
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
