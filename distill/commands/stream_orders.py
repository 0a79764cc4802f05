"""``distill continual orders``: a stream in several orders and with several seeds, and the spread over both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from augment.console import shown_path
from distill.commands.stream_orders_report import Disparities, FinishedRun, order_items, table_of
from distill.config import validate_tree
from distill.continual.errors import ContinualError
from distill.continual.open_stream import open_stream
from distill.continual.orders import order_disparity
from distill.continual.streams.base import in_order
from distill.continual.task import Task
from distill.experiments.base import Experiment
from distill.experiments.continual import ContinualExperiment
from distill.files import write_atomic
from distill.report.html import write_report
from distill.report.items import Item
from distill.report.plots import Spread, spread_figure
from distill.report.summary import Machine, RunSummary
from distill.report.terminal import measured_table
from distill.report.theme import LIGHT, png
from distill.run.folder import read_record, read_tree
from distill.run.runner import run_plan
from distill.stages.extract_features import ExtractFeatures
from distill.stages.report import PAGE, RESULTS
from distill.yaml_tree import ConfigError, differences, dump_yaml

TRIES = 1000
"""Seeds that are tried to find different orders."""


def run_orders(
    experiment: Experiment, source: str, orders: int | Sequence[str], seeds: int, console: Console
) -> list[Disparities]:
    """Learn a stream in several orders, and in its first order with several seeds.

    Args:
        experiment: a stream.
        source: where its config is from, for errors.
        orders: number of orders, at least 2, or letters of the published ones (A to E).
        seeds: number of seeds, at least 2.
        console: shows progress and the table.

    Returns:
        The spread of each model in each setting, which is also written to ``orders.json``, ``orders.png`` and
        ``report.html``.

    Raises:
        ConfigError: it is no stream, or trains on several devices.
        ContinualError: its tasks have not so many orders, or none of these letters.
    """
    if not isinstance(experiment, ContinualExperiment):
        raise ConfigError(f"{source}: kind: {experiment.kind}, and this command needs kind: continual")
    if experiment.training.devices > 1:
        devices = experiment.training.devices
        text = "the runs of this command share a process, and the ranks of a run end with it; set 1"
        raise ConfigError(f"{source}: training.devices: {devices}: {text}")
    root = experiment.output / f"{experiment.name}-orders"
    tree = experiment.model_dump(mode="json") | {"output": str(root)}
    names = orders_of(experiment, orders)
    first = next(iter(names.values()))
    trees = {f"order-{label}": _tree(tree, f"order-{label}", order, 0) for label, order in names.items()}
    of_seeds = {f"seed-{number}": _tree(tree, f"seed-{number}", first, number) for number in range(1, seeds)}
    folders = {name: _finished(each, root, console) for name, each in (trees | of_seeds).items()}
    runs = [
        FinishedRun(
            name.replace("-", " ") if name in trees else f"seed {of_seeds[name]['seed']}",
            json.loads((folder / RESULTS).read_text())["summary"],
            name in of_seeds,
        )
        for name, folder in folders.items()
    ]
    finals = dict(zip(folders, (run.final for run in runs)))
    by_order, by_seed = [finals[name] for name in trees], [finals[name] for name in (next(iter(trees)), *of_seeds)]
    compared = [
        _disparities(key, by_order, by_seed) for key in by_order[0] if all(key in each for each in finals.values())
    ]
    content = {
        "orders": dict(zip(trees, names.values())),
        "seeds": [experiment.seed + number for number in range(seeds)],
        "spread": [asdict(each) for each in compared],
        "final": {name: {" · ".join(key): of for key, of in final.items()} for name, final in finals.items()},
    }
    write_atomic(root / "orders.json", json.dumps(content, indent=2).encode())
    drawn = [Spread(f"{e.model}, {e.setting}", e.aopd, e.mopd, e.aopd_seeds, e.mopd_seeds) for e in compared]
    figure = png(lambda theme: spread_figure(drawn, theme), LIGHT)
    if figure is not None:
        write_atomic(root / "orders.png", figure)
    page = _write_page(root, experiment, tree, order_items(compared, runs, root / "orders.png" if figure else None))
    console.print(measured_table(table_of(compared, len(names), seeds), console.width))
    console.print(f"wrote {shown_path(page)}, orders.json and orders.png", soft_wrap=True)
    return compared


def orders_of(experiment: ContinualExperiment, orders: int | Sequence[str]) -> dict[str, list[str]]:
    """Label → the names of the tasks in an order.

    Args:
        experiment: the stream.
        orders: number of orders, or letters of the published ones.

    Returns:
        The orders, labeled by letter or by a number from 0.

    Raises:
        ContinualError: its tasks have not so many orders, or none of these letters.
    """
    if isinstance(orders, int):
        return {str(number): order for number, order in enumerate(different_orders(open_stream(experiment), orders))}
    own = experiment.model_copy(update={"stream": experiment.stream.model_copy(update={"task_order": None})})
    tasks = open_stream(own)
    return {letter: [task.name for task in in_order(tasks, letter)] for letter in orders}


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


def _write_page(root: Path, experiment: ContinualExperiment, tree: dict[str, Any], items: Iterable[Item]) -> Path:
    """Write ``report.html`` and its figures."""
    seconds = {
        record.parent.name: sum(read_record(record.parent)["stages"].values())
        for record in sorted(root.glob("*/run.json"))
    }
    summary = RunSummary.of(
        items,
        paths={"report": root / PAGE, "numbers": root / "orders.json"},
        title=root.name,
        seed=experiment.seed,
        machine=Machine.here(),
        config=dump_yaml(tree),
        finished=datetime.now().isoformat(" ", "minutes"),
        seconds=seconds,
    )
    return write_report(root, summary)


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
    return run_plan(experiment, stages, plain, folder if unfinished else False, console, "the same command")


def _disparities(key: tuple[str, str], orders: Sequence[Any], seeds: Sequence[Any]) -> Disparities:
    over_orders, over_seeds = order_disparity([each[key] for each in orders]), order_disparity([e[key] for e in seeds])
    values = [value for each in orders for value in each[key].values() if value == value]
    accuracy = sum(values) / len(values) if values else float("nan")
    numbers = (over_orders.average, over_orders.maximum, over_seeds.average, over_seeds.maximum)
    return Disparities(*key, accuracy, *numbers)
