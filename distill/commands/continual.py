"""``distill continual …``: streams in several orders, and finished streams that go on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from augment.base import expanded
from augment.console import plain_console
from distill.yaml_tree import ConfigError

AGAIN = "distill train {run} --resume"
"""What continues an interrupted run of a stream that goes on: this command would begin another one."""

continual = typer.Typer(
    help="Streams of tasks: learn one in several orders, or go on with a finished one.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Replaces a setting of the file, as for distill train."),
]


@continual.command()
def orders(
    config: Annotated[Path, typer.Argument(parser=expanded, metavar="CONFIG", help="YAML file of kind: continual.")],
    overrides: Overrides = None,
    orders: Annotated[
        str,
        typer.Option(
            metavar="COUNT|LETTERS",
            help="Number of orders, the first is the config's own; or published ones, such as A,B,C,D,E.",
        ),
    ] = "5",
    seeds: Annotated[int, typer.Option(min=2, help="Seeds in the first order, from the config's own on.")] = 3,
) -> None:
    """Learn a stream in several orders and with several seeds, and compare the spread over both (AOPD, MOPD).

    The runs are in OUTPUT/NAME-orders; those that are finished are not repeated. What does not depend on the order, the
    features of frozen networks, is computed once. report.html there compares the runs.

    Example: distill continual orders configs/continual/quick.yaml --orders 5 --seeds 3
    """
    from distill.commands.stream_orders import run_orders
    from distill.config import load_config

    run_orders(load_config(config, overrides or []), str(config), _orders(orders), seeds, plain_console())


def _orders(text: str) -> int | list[str]:
    """A number of orders, or letters."""
    letters = [letter.strip() for letter in text.split(",")]
    if text.isdecimal() and int(text) >= 2:
        return int(text)
    if len(letters) < 2 or len({*letters}) < len(letters) or not {*letters} <= {*"ABCDE"}:
        raise ConfigError(f"--orders {text}: expected a number of at least 2, or letters from A to E such as A,B,C,D,E")
    return letters


@continual.command("continue")
def add_tasks(
    run: Annotated[Path, typer.Argument(parser=expanded, metavar="RUN", help="Folder of a finished stream.")],
    changes: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG|KEY.PATH=VALUE", help="YAML file with the new data, or settings to replace."),
    ],
) -> None:
    """Learn more tasks with the learner of a finished stream, from its folder alone, without its images.

    The run's own config applies, with the settings of CONFIG (such as data and stream) and KEY.PATH=VALUE in place of
    its own. The result is a new run; if it is interrupted, distill train NEW_RUN --resume continues it.

    Example: distill continual continue runs/flowers 'data.source={type: folder, root: NEW}' stream.count=1
    """
    from distill.commands.stream_continue import continued_experiment
    from distill.run.runner import run_plan

    files = [change for change in changes if "=" not in change and not change.startswith("~")]
    if len(files) > 1:
        raise ConfigError(f"one config at most: {', '.join(files)}")
    experiment = continued_experiment(run, Path(files[0]) if files else None, [c for c in changes if c not in files])
    tree = experiment.model_dump(mode="json")
    run_plan(experiment, experiment.plan(), tree, console=plain_console(), continued_by=AGAIN)
