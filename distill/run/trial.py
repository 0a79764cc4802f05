"""Trials: the checks of a run try its steps on one small batch of each split before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from augment.base import UserError, described
from distill.run.stage import StageError


@dataclass(frozen=True)
class Trial:
    """Marks a context in which stages try their work: its loaders give one small batch, and files go to ``folder``."""

    folder: Path
    """Deleted after the checks."""
    images: int = 8
    """Images of a batch of evaluation; a training batch has twice as many."""


@contextmanager
def trying(what: str) -> Iterator[None]:
    """Raise any error within as a ``StageError`` that names what failed, and the line of the user's own code.

    A ``UserError`` stays as it is.

    Args:
        what: such as "one training step".

    Raises:
        StageError: with the original error as its cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's own class may raise anything
        raise StageError(f"{what} failed: {described(error)}") from error


@contextmanager
def running(stage: str) -> Iterator[None]:
    """Raise the error of a full GPU as a ``StageError`` that names the stage. Other errors stay as they are."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why = str(error).splitlines()[0]
        raise StageError(f"{stage}: too little memory on the GPU: {why} Lower data.batch_size or data.size") from error
