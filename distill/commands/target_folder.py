"""The folder that a command writes to: a new or empty one, unless ``--force`` is given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from augment.base import expanded

Force = Annotated[
    bool, typer.Option("--force", help="Write to a folder that is not empty; files of the same names are replaced.")
]


def picture(text: str) -> Path:
    """The path of a PNG to write, with ``~`` expanded. Raises ``typer.BadParameter`` for another extension."""
    path = expanded(text)
    if path.suffix.lower() != ".png" and not path.is_dir():
        raise typer.BadParameter(f"{path}: a picture is written as PNG; give the file the extension .png")
    return path


def check_target(to: Path, force: bool) -> None:
    """Raise ``ExportError`` if a folder is not empty, or is a file.

    Args:
        to: where the command will write.
        force: whether the folder may hold files.
    """
    from distill.export.checksummed import ExportError

    if to.exists() and not to.is_dir():
        raise ExportError(f"{to} is a file; name a folder")
    if not force and to.is_dir() and any(to.iterdir()):
        raise ExportError(f"{to} is not empty; name a new folder, or replace files of the same names by --force")


@contextmanager
def written_beside(to: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder beside ``to``, whose content replaces that of ``to`` when the block ends without an error.

    So ``to`` never holds a part of the files, nor files that have failed a check within the block.

    Args:
        to: where the files belong; it may exist, with files of other names.
        names: all files and folders that the block can write; those of ``to`` that it does not write are removed.

    Yields:
        An empty folder, which is removed in the end.
    """
    to = to.resolve()
    unfinished = to.with_name(f"{to.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if not to.exists():
            unfinished.rename(to)
            return
        for name in names:
            old = to / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if (unfinished / name).exists():
                (unfinished / name).rename(old)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
