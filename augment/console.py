"""The consoles of all command lines. They print text as it is, because paths, names and values of users may hold
brackets and colons, which rich would otherwise read as markup and emoji codes. Styles are given by ``rich.text.Text``.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def plain_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console without markup, emoji codes and highlighting of numbers."""
    return Console(markup=False, emoji=False, highlight=False, stderr=stderr, quiet=quiet)


def shown_path(path: Path | str) -> str:
    """A path as a console shows it: relative to the current folder if it is in there."""
    path, here = Path(path), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)
