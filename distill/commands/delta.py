"""``distill delta …``: the command line of the algebra of delta files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from augment.base import expanded
from augment.console import plain_console
from distill.commands.target_folder import Force, check_target

delta = typer.Typer(
    help="Add, scale, compare and shrink delta files: folders with delta.safetensors and delta.json.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Folder = Annotated[
    Path,
    typer.Argument(
        parser=expanded,
        metavar="DELTA",
        help="A delta folder, such as runs/quickstart/export/delta, or hf-hub:OWNER/NAME.",
    ),
]
First = Annotated[Path, typer.Argument(parser=expanded, metavar="FIRST", help="A delta folder.")]
Second = Annotated[
    Path, typer.Argument(parser=expanded, metavar="SECOND", help="Another delta folder, of the same backbone.")
]
To = Annotated[Path, typer.Option("--to", "-o", parser=expanded, metavar="PATH", help="The folder to write.")]
Head = Annotated[
    Literal["first", "second"] | None,
    typer.Option(help="Whose head to take if they differ; labels and preprocessing come from the same file."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        parser=expanded,
        metavar="PATH",
        help="Experiment with the backbone and validation images; default: the file's backbone, and noise.",
    ),
]
Plugins = Annotated[
    bool, typer.Option("--allow-plugins", help="Import delta classes outside this package that the file names.")
]


@delta.command()
def add(
    first: First,
    second: Second,
    to: To,
    head: Head = None,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Add the changes of two files."""
    check_target(to, force)
    _combine("add", [first, second], to, config, allow_plugins, head=head)


@delta.command()
def subtract(
    first: First,
    second: Second,
    to: To,
    head: Head = None,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Subtract the changes of the second file from those of the first."""
    check_target(to, force)
    _combine("subtract", [first, second], to, config, allow_plugins, head=head)


@delta.command()
def interpolate(
    first: First,
    second: Second,
    t: Annotated[float, typer.Argument(help="0 is the first, 1 the second; values beyond extrapolate.")],
    to: To,
    head: Head = None,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Interpolate between the changes of two files, and between their heads if the labels are the same."""
    check_target(to, force)
    _combine("interpolate", [first, second], to, config, allow_plugins, t=t, head=head)


@delta.command()
def compose(
    first: First, second: Second, to: To, head: Head = None, allow_plugins: Plugins = False, force: Force = False
) -> None:
    """Apply the deltas of the second file to the layers that the first has changed."""
    check_target(to, force)
    _combine("compose", [first, second], to, None, allow_plugins, head=head)


@delta.command()
def scale(
    path: Folder,
    factor: Annotated[float, typer.Argument(help="0.5 halves the change, 1 leaves it as it is.")],
    to: To,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Multiply the changes of a file by a factor; the head stays as it is."""
    check_target(to, force)
    _combine("scale", [path], to, config, allow_plugins, factor=factor)


@delta.command()
def negate(path: Folder, to: To, config: Config = None, allow_plugins: Plugins = False, force: Force = False) -> None:
    """Turn the changes of a file into their opposite; the head stays as it is."""
    check_target(to, force)
    _combine("negate", [path], to, config, allow_plugins)


@delta.command()
def truncate(
    path: Folder,
    to: To,
    rank: Annotated[int | None, typer.Option(min=1, help="Largest rank per site.")] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes of the deltas, without the head: 200KB, 64KiB.")] = None,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Approximate the changes of a file by low ranks: to a rank, or to a budget of bytes."""
    check_target(to, force)
    from distill.commands.delta_files import truncate_file

    truncate_file(path, to, rank, budget, config, allow_plugins, plain_console())


@delta.command()
def quantize(
    path: Folder,
    to: To,
    form: Annotated[Literal["float16", "int8", "sign"], typer.Option("--as", help="Format of the deltas.")] = "int8",
    head: Annotated[Literal["float32", "float16", "int8"], typer.Option(help="Format of the head.")] = "float16",
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Store a file in fewer bytes: half precision, 8 bits, or one bit per number and a scale per row."""
    check_target(to, force)
    from distill.commands.delta_files import quantize_file

    quantize_file(path, to, form, None if head == "float32" else head, config, allow_plugins, plain_console())


@delta.command()
def diff(first: First, second: Second, config: Config = None, allow_plugins: Plugins = False) -> None:
    """Compare the changes of two files, site by site."""
    from distill.commands.delta_files import diff_files

    diff_files(first, second, config, allow_plugins, plain_console())


@delta.command()
def to_peft(
    path: Folder,
    to: To,
    expand: Annotated[
        bool, typer.Option("--expand", help="Grouped convs too: their A becomes a whole conv, zero between groups.")
    ] = False,
    config: Config = None,
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Write a file of low_rank, dora or ia3 deltas as a peft adapter, with the delta file beside it."""
    check_target(to, force)
    from distill.commands.peft import export_adapter

    export_adapter(path, to, expand, config, allow_plugins, plain_console())


@delta.command()
def from_peft(
    path: Annotated[
        Path,
        typer.Argument(parser=expanded, metavar="ADAPTER", help="Folder with adapter_config.json and safetensors."),
    ],
    to: To,
    backbone: Annotated[
        str | None,
        typer.Option(metavar="NETWORK", help="That it was trained on, as in student.network.model."),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(parser=expanded, metavar="FILE", help="Weights of the backbone.")
    ] = None,
    prefix: Annotated[str | None, typer.Option(metavar="PREFIX", help="Of names in the checkpoint.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Height and width of the backbone's input.")] = None,
    random_weights: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="The backbone has random weights of this seed, and no pretrained ones."),
    ] = None,
    force: Force = False,
) -> None:
    """Write a peft adapter (LoRA, DoRA, IA3) of a timm model as a delta file of its backbone."""
    check_target(to, force)
    from distill.commands.peft import import_adapter

    console = plain_console()
    import_adapter(
        path, to, backbone, console, checkpoint=checkpoint, prefix=prefix, size=size, random_seed=random_weights
    )


def _combine(
    operation: str, paths: list[Path], to: Path, config: Path | None, allow_plugins: bool, **options: object
) -> None:
    from distill.commands.delta_files import combine_files

    combine_files(operation, paths, to, config, allow_plugins, options, plain_console())
