"""``distill delta …``: the command line of the algebra of delta files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

delta = typer.Typer(
    help="Add, scale, compare and shrink delta files: folders with delta.safetensors and delta.json.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

One = Annotated[Path, typer.Argument(metavar="DELTA", help="A delta folder, such as runs/quickstart/export/delta.")]
First = Annotated[Path, typer.Argument(metavar="FIRST", help="A delta folder.")]
Second = Annotated[Path, typer.Argument(metavar="SECOND", help="Another one, of the same backbone.")]
To = Annotated[Path, typer.Option("--to", "-o", help="The folder to write.")]
Head = Annotated[
    Literal["first", "second"] | None,
    typer.Option(help="Whose head to take where they differ; labels and preprocessing come along."),
]
Config = Annotated[
    Path | None,
    typer.Option(help="The experiment whose backbone and validation images to use; default: by the file, and noise."),
]
Plugins = Annotated[bool, typer.Option("--allow-plugins", help="Import delta classes of your own that it names.")]


@delta.command()
def add(
    first: First, second: Second, to: To, head: Head = None, config: Config = None, allow_plugins: Plugins = False
) -> None:
    """What both change, together."""
    _combine("add", [first, second], to, config, allow_plugins, head=head)


@delta.command()
def subtract(
    first: First, second: Second, to: To, head: Head = None, config: Config = None, allow_plugins: Plugins = False
) -> None:
    """What the first changes, without what the second does."""
    _combine("subtract", [first, second], to, config, allow_plugins, head=head)


@delta.command()
def interpolate(
    first: First,
    second: Second,
    t: Annotated[float, typer.Argument(help="0 is the first, 1 the second; beyond is allowed.")],
    to: To,
    head: Head = None,
    config: Config = None,
    allow_plugins: Plugins = False,
) -> None:
    """Part of the way from the first to the second; heads for the same labels too."""
    _combine("interpolate", [first, second], to, config, allow_plugins, t=t, head=head)


@delta.command()
def compose(first: First, second: Second, to: To, head: Head = None, allow_plugins: Plugins = False) -> None:
    """The second's deltas on the layers that the first has changed."""
    _combine("compose", [first, second], to, None, allow_plugins, head=head)


@delta.command()
def scale(
    path: One,
    factor: Annotated[float, typer.Argument(help="1 leaves it, 0.5 halves what it changes.")],
    to: To,
    config: Config = None,
    allow_plugins: Plugins = False,
) -> None:
    """More or less of what it changes; the head stays as it is."""
    _combine("scale", [path], to, config, allow_plugins, factor=factor)


@delta.command()
def negate(path: One, to: To, config: Config = None, allow_plugins: Plugins = False) -> None:
    """The opposite of what it changes; the head stays as it is."""
    _combine("negate", [path], to, config, allow_plugins)


@delta.command()
def truncate(
    path: One,
    to: To,
    rank: Annotated[int | None, typer.Option(min=1, help="At most so many ranks a layer.")] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes of the deltas without the head: 200KB, 64KiB.")] = None,
    config: Config = None,
    allow_plugins: Plugins = False,
) -> None:
    """The nearest change of fewer ranks, to a rank or to a budget of bytes."""
    from distill.commands.delta_files import truncate_file

    truncate_file(path, to, rank, budget, config, allow_plugins, Console())


@delta.command()
def quantize(
    path: One,
    to: To,
    form: Annotated[Literal["float16", "int8", "sign"], typer.Option("--as", help="Of the deltas' numbers.")] = "int8",
    head: Annotated[Literal["float32", "float16", "int8"], typer.Option(help="Of the head's.")] = "float16",
    config: Config = None,
    allow_plugins: Plugins = False,
) -> None:
    """The same file in fewer bytes: half precision, 8 bits, or one bit per number and a scale per row."""
    from distill.commands.delta_files import quantize_file

    quantize_file(path, to, form, None if head == "float32" else head, config, allow_plugins, Console())


@delta.command()
def diff(first: First, second: Second, config: Config = None, allow_plugins: Plugins = False) -> None:
    """How far two files are apart, layer by layer."""
    from distill.commands.delta_files import diff_files

    diff_files(first, second, config, allow_plugins, Console())


def _combine(
    operation: str, paths: list[Path], to: Path, config: Path | None, allow_plugins: bool, **options: object
) -> None:
    from distill.commands.delta_files import combine_files

    combine_files(operation, paths, to, config, allow_plugins, options, Console())
