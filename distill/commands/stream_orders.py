"""``distill continual orders``: a stream in several orders and with several seeds, and the spread over both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from augment.console import shown_path
from distill.config import validate_tree
from distill.continual.errors import ContinualError
from distill.continual.open_stream import open_stream
from distill.continual.orders import order_disparity
from distill.continual.streams.base import in_order
from distill.continual.task import Task
from distill.experiments.base import Experiment
from distill.experiments.continual import ContinualExperiment
from distill.files import write_atomic
from distill.report.items import Column, Table, TableRow
from distill.report.plots import Spread, spread_figure
from distill.report.terminal import measured_table
from distill.report.theme import LIGHT, png
from distill.run.folder import read_record, read_tree
from distill.run.runner import run_plan
from distill.stages.extract_features import ExtractFeatures
from distill.stages.report import RESULTS
from distill.yaml_tree import ConfigError, differences

TRIES = 1000
"""Seeds that are tried to find different orders."""


@dataclass(frozen=True)
class Disparities:
    """Spread of the tasks' final accuracies of one model in one setting; fractions.

    Args:
        model: its name.
        setting: of the evaluation.
        accuracy: mean of the tasks, mean over orders.
        aopd: average over tasks of the range over orders.
        mopd: the largest one.
        aopd_seeds: the same as ``aopd`` over seeds in one order: the noise that it has to exceed.
        mopd_seeds: the same as ``mopd`` over seeds.
    """

    model: str
    setting: str
    accuracy: float
    aopd: float
    mopd: float
    aopd_seeds: float
    mopd_seeds: float


def run_orders(experiment: Experiment, source: str, orders: int, seeds: int, console: Console) -> list[Disparities]:
    """Learn a stream in several orders, and in its first order with several seeds.

    Args:
        experiment: a stream.
        source: where its config is from, for errors.
        orders: number of orders, at least 2.
        seeds: number of seeds, at least 2.
        console: shows progress and the table.

    Returns:
        The spread of each model in each setting, which is also written to ``orders.json`` and ``orders.png``.

    Raises:
        ConfigError: it is no stream.
        ContinualError: its tasks have not so many orders.
    """
    if not isinstance(experiment, ContinualExperiment):
        raise ConfigError(f"{source}: kind: {experiment.kind}, and this command needs kind: continual")
    root = experiment.output / f"{experiment.name}-orders"
    tree = experiment.model_dump(mode="json") | {"output": str(root)}
    names = different_orders(open_stream(experiment), orders)
    runs = {f"order-{number}": _tree(tree, f"order-{number}", order, 0) for number, order in enumerate(names)}
    of_seeds = {f"seed-{number}": _tree(tree, f"seed-{number}", names[0], number) for number in range(1, seeds)}
    finals = {name: _final(_finished(each, root, console)) for name, each in (runs | of_seeds).items()}
    by_order, by_seed = [finals[name] for name in runs], [finals["order-0"], *(finals[name] for name in of_seeds)]
    compared = [
        _disparities(key, by_order, by_seed) for key in by_order[0] if all(key in each for each in finals.values())
    ]
    content = {
        "orders": dict(zip(runs, names)),
        "seeds": [experiment.seed + number for number in range(seeds)],
        "spread": [asdict(each) for each in compared],
        "final": {name: {" · ".join(key): of for key, of in final.items()} for name, final in finals.items()},
    }
    write_atomic(root / "orders.json", json.dumps(content, indent=2).encode())
    drawn = [Spread(f"{e.model}, {e.setting}", e.aopd, e.mopd, e.aopd_seeds, e.mopd_seeds) for e in compared]
    figure = png(lambda theme: spread_figure(drawn, theme), LIGHT)
    if figure is not None:
        write_atomic(root / "orders.png", figure)
    console.print(measured_table(table_of(compared, orders, seeds), console.width))
    console.print(f"wrote {shown_path(root / 'orders.json')} and orders.png", soft_wrap=True)
    return compared


def different_orders(tasks: Sequence[Task], count: int) -> list[list[str]]:
    """Names of the tasks in several orders: the given one first, then keyed ones.

    Args:
        tasks: in their own order.
        count: number of orders.

    Returns:
        As many different orders.

    Raises:
        ContinualError: there are not so many.
    """
    made = [[task.name for task in tasks]]
    for seed in range(TRIES):
        if len(made) == count:
            return made
        order = [task.name for task in in_order(sorted(tasks, key=lambda task: task.name), seed)]
        if order not in made:
            made.append(order)
    raise ContinualError(f"--orders {count}: {len(tasks)} tasks have only {len(made)} different orders")


def table_of(compared: Sequence[Disparities], orders: int, seeds: int) -> Table:
    """The spread of all models as a table."""
    columns = (
        Column(heading="model"),
        Column(heading="setting", rank=2),
        Column(heading="accuracy, %", unit="percent", rank=1),
        Column(heading=f"AOPD, {orders} orders", unit="percent"),
        Column(heading=f"AOPD, {seeds} seeds", unit="percent"),
        Column(heading=f"MOPD, {orders} orders", unit="percent"),
        Column(heading=f"MOPD, {seeds} seeds", unit="percent"),
    )
    rows = [
        TableRow(
            cells=(
                each.model,
                each.setting,
                *map(_known, (each.accuracy, each.aopd, each.aopd_seeds, each.mopd, each.mopd_seeds)),
            ),
            strong=each.model.startswith("student"),
        )
        for each in compared
    ]
    return Table(title="Range of a task's final accuracy, points", columns=columns, rows=tuple(rows))


def _tree(tree: dict[str, Any], name: str, order: Sequence[str], seed: int) -> dict[str, Any]:
    stream = {**tree["stream"], "task_order": list(order)}
    return {**tree, "name": name, "stream": stream, "seed": tree["seed"] + seed}


def _finished(tree: dict[str, Any], root: Path, console: Console) -> Path:
    """The folder of a run: a finished one of the same config, or one that runs now, from where it was stopped."""
    folder = root / str(tree["name"])
    unfinished = False
    if folder.is_dir():
        if changed := differences(read_tree(folder), tree):
            raise ConfigError(
                f"{folder} was made with other settings: {', '.join(changed)}; give the config another name"
            )
        if read_record(folder)["status"] == "finished":
            console.print(f"{shown_path(folder)} is finished", highlight=False, soft_wrap=True)
            return folder
        unfinished = True
    experiment = cast(ContinualExperiment, validate_tree(tree, str(folder)))
    stages = [replace(s, shared=True) if isinstance(s, ExtractFeatures) else s for s in experiment.plan()]
    plain = experiment.model_dump(mode="json")
    return run_plan(experiment, stages, plain, folder if unfinished else False, console)


def _final(run: Path) -> dict[tuple[str, str], dict[str, float]]:
    """(model, setting) → task → its accuracy after the last task; NaN where it was not measured."""
    summary = json.loads((run / RESULTS).read_text())["summary"]
    finals = {}
    for matrix in summary["matrices"]:
        last = [float("nan") if value is None else value for value in matrix["values"][-1]]
        finals[matrix["title"], matrix["section"].rpartition(", ")[2]] = dict(zip(matrix["columns"], last))
    return finals


def _disparities(key: tuple[str, str], orders: Sequence[Any], seeds: Sequence[Any]) -> Disparities:
    over_orders, over_seeds = order_disparity([each[key] for each in orders]), order_disparity([e[key] for e in seeds])
    values = [value for each in orders for value in each[key].values() if value == value]
    accuracy = sum(values) / len(values) if values else float("nan")
    numbers = (over_orders.average, over_orders.maximum, over_seeds.average, over_seeds.maximum)
    return Disparities(*key, accuracy, *numbers)


def _known(value: float) -> float | None:
    return value if value == value else None
