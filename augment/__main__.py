"""The command line of augmentation: ``augment check``, ``augment list``; also as ``python -m augment``."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from augment.base import UserError
from augment.base.machine import set_openmp_defaults
from augment.console import plain_console

set_openmp_defaults()  # before torch is imported, which reads them then

app = typer.Typer(
    help="Operations on batches of images, drawn by sample.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COLORS = {"ok": "green", "note": "yellow", "fail": "bold red"}


@app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in a recipe: a name, or package.module:Class.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT=VALUE", help="In JSON; bare words are strings.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Side of the images in pixels.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="How many images are timed.")] = 32,
) -> None:
    """Check an operation: whether it is repeatable and independent of its batch, and its cost.

    Exit status 1 if it fails a requirement of a chain.

    Example: augment check my_ops:Tint strength=0.3
    """
    from augment.check import examine
    from augment.recipe import build

    results = examine(build(name, dict(map(_argument, arguments or [])), (size, size)), (size, size), batch)
    table = Table(box=box.SIMPLE_HEAD, title=name, title_justify="left", title_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why", overflow="fold")
    for result in results:
        table.add_row(result.check, Text(result.verdict, _COLORS[result.verdict]), Text(result.why))
    plain_console().print(table)
    raise typer.Exit(int(any(result.verdict == "fail" for result in results)))


@app.command("list")
def list_operations(
    word: Annotated[str, typer.Argument(help="Show only lines with this word.")] = "",
) -> None:
    """List the operations and recipes that a chain can name without an import path, with a line on each."""
    from augment.names import known_operations, summary
    from augment.presets import PRESETS

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("what", overflow="fold")
    rows = [(known.name, known.source, known.what) for known in known_operations()]
    rows += [(name, "recipe", summary(preset)) for name, preset in PRESETS.items()]
    for row in rows:
        if word.lower() in " ".join(row).lower():
            table.add_row(*map(Text, row))
    plain_console().print(table)


def _argument(text: str) -> tuple[str, Any]:
    """``"scale=[0.3, 1.0]"`` → ``("scale", [0.3, 1.0])``."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise typer.BadParameter(f"{text!r}: write argument=value")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; known errors are one message and exit status 2."""
    sys.path.append(os.getcwd())  # users' own classes are looked up last in the current folder
    try:
        app(arguments, prog_name="augment")
    except UserError as error:
        plain_console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
