"""The command line. Commands import modules only when they need them, so that a config error is reported quickly."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from augment.base import UserError, described, expanded, place_in_users_code
from augment.console import plain_console
from distill.commands.continual import continual
from distill.commands.delta import Plugins, delta
from distill.commands.hub import hub
from distill.commands.target_folder import Force, check_target, picture
from distill.declarations import declarations_only

if TYPE_CHECKING:
    from distill.experiments.base import Experiment
    from distill.experiments.distillation import DistillationExperiment

app = typer.Typer(
    help="Distill a large frozen teacher into a small student: a frozen backbone plus learned deltas.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(delta, name="delta")
app.add_typer(hub, name="hub")
app.add_typer(continual, name="continual")

ConfigFile = Annotated[
    Path, typer.Argument(parser=expanded, metavar="CONFIG", help="YAML file, such as those in configs/.")
]
ConfigOrRun = Annotated[
    Path, typer.Argument(parser=expanded, metavar="CONFIG|RUN", help="YAML file, or the folder of a run.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE",
        help="Replaces a setting of the file; items of lists are numbered from 0. KEY.PATH+=VALUE appends to a list, "
        "~KEY.PATH removes.",
    ),
]
RunPath = Annotated[Path, typer.Argument(parser=expanded, metavar="RUN", help="A run folder, such as runs/quickstart.")]


@app.command()
def train(
    config: ConfigOrRun,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run of this folder, or this config's newest unfinished run.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Run nothing: show the stages, their inputs, and which are finished.")
    ] = False,
) -> None:
    """Run an experiment: fit the teacher, train, evaluate, export, verify, report.

    Example: distill train configs/quickstart.yaml seed=1 training.epochs=20 student.deltas.0.rank=8
    """
    experiment = _experiment(config, overrides)
    if config.is_dir() and not resume and not plan:
        raise typer.BadParameter("a run folder is continued with --resume; to start a new run, name a YAML file")
    if plan:
        from distill.commands.plan import show_plan

        show_plan(experiment, _console())
        return
    from distill.run.runner import run_plan

    tree = experiment.model_dump(mode="json")
    run_plan(experiment, experiment.plan(), tree, config if config.is_dir() else resume, _console())


@app.command()
def cache(config: ConfigFile, overrides: Overrides = None) -> None:
    """Write the teacher's outputs for its views to a cache file for any number of students; resumes an unfinished one.

    Training fills the same file step by step. The config must set teacher.cache; see the README.
    """
    experiment = _distillation(config, overrides)
    from distill.commands.cache import fill_cache

    fill_cache(experiment, _console())


@app.command()
def evaluate(
    path: RunPath,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Split of the data.")] = "test",
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of a stream: all images are of this task, whose classes compete."),
    ] = None,
    infer: Annotated[
        str | None, typer.Option(metavar="RULE", help="Of a stream: the rule that infers the task of each image.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(parser=expanded, metavar="FOLDER", help="Of a stream: other images, in a folder for each class."),
    ] = None,
    old_test: Annotated[
        bool,
        typer.Option("--old-test", help="Of a stream that goes on: also images of earlier runs, from their sources."),
    ] = False,
) -> None:
    """Print the accuracy of a run's student, loaded from its exported files.

    Of a stream of tasks, by default each task's images are predicted by that task, and then with its first rule.
    """
    from distill.config import read_run

    if read_run(path, operations=False)[0].kind == "continual":
        if task and infer:
            raise typer.BadParameter(
                "--task tells the task of all images, so there is none to --infer: give one of them"
            )
        from distill.commands.stream_evaluate import evaluate_stream

        evaluate_stream(path, split, _console(), task=task, infer=infer, images=images, old_test=old_test)
        return
    if task or infer or images or old_test:
        raise typer.BadParameter("--task, --infer, --images and --old-test are for a run of kind: continual")
    from distill.commands.exported import evaluate_run

    evaluate_run(path, split, _console())


@app.command()
def export(
    path: RunPath,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FORMAT,…",
            help="Add formats to the run, verified, and to its report; with --output: write these formats there.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", parser=expanded, metavar="DIR", help="Folder to write; default: RUN/export."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure/--no-measure",
            help="With --to: measure all formats, each in a process of its own, for the report.",
        ),
    ] = True,
    pick: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help='Choose among the measured formats, such as "accuracy-1%, min latency" or "size<=5MB, max accuracy".',
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Export the student of a finished run, from its trained weights; without --to, its formats are written again.

    Nothing is trained. Example: distill export RUN --to onnx,pt2 (see distill doctor for the formats that are there);
    distill export RUN --pick "accuracy-1%, min latency" measures the formats of the run and chooses one.
    """
    if pick is not None:
        from distill.export.pick import parse_rule

        parse_rule(pick)
        if output is not None or not measure:
            raise typer.BadParameter(
                "--pick chooses among the measured formats of the run: no --output, no --no-measure"
            )
    _check_run(path)
    if output is not None:  # the run's own export is written again
        check_target(output, force)
    if output is None and (to is not None or pick is not None):
        from distill.commands.export_formats import add_formats

        add_formats(path, to, _console(), measure=measure, pick=pick)
        return
    from distill.commands.runs import export_run

    export_run(path, output, _console(), to)


@app.command()
def verify(path: RunPath) -> None:
    """Verify a run's export: hashes, and equal outputs of the exported models on real images in a new process."""
    _check_run(path)
    from distill.commands.exported import verify_run

    verify_run(path, _console())


@app.command()
def adapt(
    run: Annotated[
        Path, typer.Argument(parser=expanded, metavar="RUN|DELTA", help="Run folder, or folder of a delta file.")
    ],
    images: Annotated[
        Path, typer.Argument(parser=expanded, metavar="IMAGES", help="Folder of images of another domain; no labels.")
    ],
    overrides: Overrides = None,
    to: Annotated[
        Path, typer.Option("--to", "-o", parser=expanded, metavar="DIR", help="Folder of the new delta file.")
    ] = Path("adapted"),
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Replace the batch-norm statistics alone, and train nothing.")
    ] = False,
    force: Force = False,
) -> None:
    """Adapt a delta file to unlabeled images of another domain, without the images it was trained on.

    The result is a new delta file of the same backbone; the report is in DIR/run. The same command continues an
    interrupted run. Example: distill adapt
    runs/photo-sketch/source-only/delta sketches -o adapted training.epochs=5
    """
    from distill.commands.adapt import adapt as adapt_delta

    adapt_delta(run, images, to, statistics, overrides or [], _console(), force)


@app.command()
def emulator(
    config: ConfigFile,
    overrides: Overrides = None,
    to: Annotated[
        Path, typer.Option("--to", "-o", parser=expanded, metavar="DIR", help="Folder of the emulator.")
    ] = Path("emulator"),
    force: Force = False,
) -> None:
    """Make the emulator that the owner of a network gives away: blocks of its middle are dropped.

    CONFIG has kind: offsite; only network, front, back, keep and distill count, and the images if distill is set. DIR
    is a timm folder, which the user of the emulator names as student.network.model: local-dir:DIR. With distill, the
    run is in the config's output folder, and the same command continues it if it was interrupted.
    """
    check_target(to, force)
    experiment = _experiment(config, overrides)
    from distill.commands.offsite import make_emulator

    make_emulator(experiment, to, _console())


@app.command()
def plug(
    delta: Annotated[
        Path,
        typer.Argument(
            parser=expanded, metavar="DELTA|RUN", help="Delta file trained on an emulator, or the run that exported it."
        ),
    ],
    into: Annotated[
        str, typer.Option("--into", metavar="NETWORK", help="The full network, as in student.network.model.")
    ],
    checkpoint: Annotated[
        Path | None,
        typer.Option(parser=expanded, metavar="FILE", help="Its weights, as in student.network.checkpoint."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Of names in the checkpoint, as in student.network.prefix.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--to", "-o", parser=expanded, metavar="DIR", help="Folder of the student.")
    ] = Path("plugged"),
    allow_plugins: Plugins = False,
    force: Force = False,
) -> None:
    """Plug a delta file of an emulator into the full network, and verify the student.

    The ends of the emulator must be those of the network, by the SHA-256 of every tensor. DIR has a delta file of the
    full network, and a merged timm folder. Example: distill plug delta --into embedded:tf_efficientnet_lite0 -o plugged
    """
    check_target(to, force)
    from distill.commands.offsite import plug as plug_delta

    plug_delta(delta, into, to, _console(), checkpoint=checkpoint, prefix=prefix, allow_plugins=allow_plugins)


@app.command()
def rank(
    config: ConfigFile,
    networks: Annotated[
        list[str],
        typer.Argument(metavar="NETWORK", help="Names as in student.network.model; KEY.PATH=VALUE sets a key."),
    ],
    by: Annotated[
        Literal["logme", "h_score", "leep", "ncm"], typer.Option(help="Score that they are sorted by.")
    ] = "logme",
    images: Annotated[int, typer.Option(min=0, help="Most training images that are read; 0: all.")] = 500,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank networks for the training images of a config, without training: LogME, H-score, LEEP, nearest class mean.

    A network that cannot be read is named, and does not stop the others. Example: distill rank
    configs/transfer/few_shot.yaml embedded:tf_efficientnet_lite0 embedded:tf_efficientnet_lite2 data.size=128
    """
    overrides = [name for name in networks if re.match(r"~|[\w.]+\+?=", name)]
    names = [name for name in networks if name not in overrides]
    if not names:
        raise typer.BadParameter("name a network or more, such as embedded:tf_efficientnet_lite0")
    experiment = _experiment(config, overrides)
    from distill.commands.rank import rank as rank_networks

    rank_networks(experiment, names, _console(), by=by, images=images, as_json=as_json)


@app.command()
def classes(
    run: RunPath,
    action: Annotated[Literal["list", "add"], typer.Argument(help="list the classes, or add some by their names.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Names of the new classes.")] = None,
    definition: Annotated[
        list[str] | None,
        typer.Option("--definition", metavar="TEXT", help="About one new class; default: the run's knowledge."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", parser=expanded, metavar="DIR", help="Folder to write; default: RUN/export-2, …"),
    ] = None,
) -> None:
    """List the classes of a run of kind: zero_shot, or add some to its head by their texts, without training.

    The wider head is a new, verified export; those before stay. Example: distill classes RUN add "tiger lily"
    """
    if action == "list" and (names or definition or to):
        raise typer.BadParameter("list takes no names and no options")
    if action == "add" and not names:
        raise typer.BadParameter('name a class to add: distill classes RUN add "tiger lily"')
    _check_run(run)
    from distill.commands.classes import add_classes, list_classes

    if action == "list":
        list_classes(run, _console())
    else:
        add_classes(run, names or [], definition or [], to, _console())


@app.command()
def preview(
    config: ConfigOrRun,
    overrides: Overrides = None,
    to: Annotated[
        Path,
        typer.Option(
            "--to", "-o", parser=picture, metavar="PATH", help="PNG to write; other files are named after it."
        ),
    ] = Path("preview.png"),
    images: Annotated[int, typer.Option(min=1, max=64, help="Number of images.")] = 8,
    epoch: Annotated[int | None, typer.Option(min=0, help="Epoch of the views; default 0.")] = None,
    ids: Annotated[str | None, typer.Option(help="Names of the samples to show, separated by commas.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="Show the batches of this update, counted from 0.")] = None,
    score: Annotated[
        bool, typer.Option("--score", help="Instead, rank pipelines by the teacher's outputs (T-stddev).")
    ] = False,
    draws: Annotated[int, typer.Option(min=2, help="--score: number of draws of a set of images.")] = 16,
    draw_images: Annotated[int, typer.Option(min=1, help="--score: number of images in a draw.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="--score: number of repetitions with different seeds.")] = 3,
) -> None:
    """Draw the views of teacher and student: a contact sheet, and a strip of each operation over its range.

    For a run folder, --step reproduces the views of a past step. With --score, print a table instead, which ranks
    pipelines by the variation of the teacher's outputs. A fitted teacher is loaded; nothing is trained.
    """
    experiment = _distillation(config, overrides)
    from distill.commands.runs import preview_views, score_views

    if score:
        score_views(experiment, to, _console(), seeds=seeds, draws=draws, images=draw_images)
    else:
        names = [name for name in (ids or "").split(",") if name]
        preview_views(experiment, to, _console(), images=images, epoch=epoch, step=step, ids=names)


@app.command()
def data(
    config: ConfigOrRun,
    overrides: Overrides = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", parser=picture, metavar="PATH", help="Picture of samples to write, PNG."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=32, help="Samples of each class and split in the picture.")] = 5,
    decode: Annotated[bool, typer.Option(help="Decode all images, for their sizes, unreadable and equal ones.")] = True,
) -> None:
    """Show the data: splits, classes, image sizes, what is not read and why, equal images, a picture of samples.

    Example: distill data configs/quickstart.yaml 'data.source={type: folder, root: FOLDER}' --to samples.png
    """
    if config.is_dir() and overrides:
        raise typer.BadParameter("a run folder has its own config; overrides are for a YAML file")
    from distill.config import load_config, read_run

    experiment = read_run(config)[0] if config.is_dir() else load_config(config, overrides or [])
    from distill.commands.data import show_data

    show_data(experiment, _console(), to, images, decode)


@app.command()
def deltas(
    config: Annotated[
        Path | None,
        typer.Argument(
            parser=expanded, metavar="[CONFIG]", help="YAML file; none: list the methods.", show_default=False
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """List the methods; of a config, its deltas with sites, shapes, ranks and bytes, and the size of each method."""
    if config is None:
        with declarations_only():
            from distill.commands.methods import delta_types

            _console().print(delta_types())
        return
    experiment = _distillation(config, overrides)
    from distill.commands.deltas import list_deltas

    list_deltas(experiment, _console())


@app.command()
def objectives() -> None:
    """List the objectives with their descriptions, defaults and papers."""
    with declarations_only():
        from distill.commands.methods import objective_types

        _console().print(objective_types())


@app.command()
def doctor(
    output: Annotated[
        Path, typer.Option(parser=expanded, metavar="PATH", help="Folder for runs, which is checked too.")
    ] = Path("runs"),
) -> None:
    """Report the properties of this machine, and whether a run would work on it."""
    from distill.commands.doctor import examine

    raise typer.Exit(0 if examine(_console(), output) else 1)


@app.command()
def schema(
    to: Annotated[
        Path | None,
        typer.Option("--to", "-o", parser=expanded, metavar="PATH", help="File to write; default: standard output."),
    ] = None,
) -> None:
    """Print the JSON schema of configs, for completion and checks in an editor.

    Write "# yaml-language-server: $schema=FILE" in the first line of a config; the editor then checks it as you type.
    """
    from distill.config import editor_schema

    with declarations_only():
        text = json.dumps(editor_schema(), indent=2, ensure_ascii=False) + "\n"
    if to is None:
        sys.stdout.write(text)
    else:
        to.write_text(text, encoding="utf-8")


def _experiment(config: Path, overrides: list[str] | None) -> Experiment:
    """The config of a YAML file or a run folder."""
    from distill.config import load_config, read_run

    if not config.is_dir():
        return load_config(config, overrides or [])
    if overrides:
        raise typer.BadParameter("a run folder has its own config; overrides are for a YAML file")
    return read_run(config)[0]


def _distillation(config: Path, overrides: list[str] | None) -> DistillationExperiment:
    """The distillation config of a YAML file or a run folder."""
    from distill.experiments.distillation import as_distillation

    return as_distillation(_experiment(config, overrides), str(config))


def _check_run(path: Path) -> None:
    """Raise an error for a folder that is not a run, before the slow imports of the command."""
    from distill.config import read_run

    read_run(path, operations=False)


def _console() -> Console:
    return plain_console(quiet=int(os.environ.get("LOCAL_RANK", "0")) > 0)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. A ``UserError``, an ``OSError`` and an error in a class of the user's own give a message.

    Exit status: 2 for a wrong config or command, 1 for a failed run, 128 + n after signal n. With
    ``DISTILL_TRACEBACK=1``, these errors give a traceback instead.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=plain_console(stderr=True), show_time=False, show_path=False, markup=False)],
    )
    # Users' own classes are imported from the current folder. It is last, so that it hides no installed package.
    sys.path.append(os.getcwd())
    try:
        app(arguments, prog_name="distill")
    except (UserError, OSError) as error:
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        # An OSError that reaches this is about a file that cannot be read or written, or a full disk.
        text = (
            str(error) if isinstance(error, UserError) or not error.filename else f"{error.filename}: {error.strerror}"
        )
        plain_console(stderr=True).print(Text.assemble(("error: ", "bold red"), text), soft_wrap=True)
        sys.exit(getattr(error, "exit_code", 1))
    except Exception as error:
        if os.environ.get("DISTILL_TRACEBACK") or not place_in_users_code(error):
            raise
        plain_console(stderr=True).print(Text.assemble(("error: ", "bold red"), described(error)), soft_wrap=True)
        sys.exit(1)
