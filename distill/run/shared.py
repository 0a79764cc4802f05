"""Locks of outputs that several runs share, so that two runs at the same time do not compute the same one twice."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from augment.console import shown_path
from distill.files import write_atomic
from distill.run.context import RunContext
from distill.run.folder import is_first_rank

logger = logging.getLogger(__name__)
LOCK, HOLDER = "lock", "holder.txt"
SECONDS = 0.5
"""Between two attempts to get a lock."""


@contextmanager
def shared_folder(folder: Path, name: str, context: RunContext, finished: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of a folder; if another run holds it, say so and wait until that run is done with it or dies.

    The operating system releases the lock of a process that dies. The first rank holds the lock for all ranks of a
    run: the others wait until it does, or until the output is finished.

    Args:
        folder: of the output; it is made if it does not exist.
        name: of the stage, for the console.
        context: of the run.
        finished: whether the output is finished.

    Raises:
        Interrupted: a signal arrived during the wait.
    """
    me = str(context.folder.path) if context.folder is not None else f"process {os.getpid()}"
    if not is_first_rank():
        while not finished() and _holder(folder) != me:
            context.stop.raise_if_received()
            time.sleep(SECONDS)
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    waits = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            if not waits:
                context.print(f"{name}: waiting for {_holder(folder)}, which makes the same in {shown_path(folder)}")
                waits = True
            context.stop.raise_if_received()
            time.sleep(SECONDS)
        except OSError as error:
            logger.warning("%s: not locked, so another run may make the same at the same time: %s", folder, error)
            break
    try:
        write_atomic(folder / HOLDER, me.encode())
        yield
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    """The run that has the lock, or had it last."""
    try:
        return (folder / HOLDER).read_text()
    except OSError:
        return "another run"
