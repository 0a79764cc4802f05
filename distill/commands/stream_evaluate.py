"""``distill evaluate`` of a stream: the exported bank on images of the run or of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from augment.base import absolute
from distill.config import read_run, validate_tree
from distill.continual.open_stream import open_stream, renamed
from distill.continual.serve import ServedBank, open_bank
from distill.data.base import UNLABELED, DataError, Split
from distill.experiments.continual import ContinualExperiment
from distill.export.checksummed import ExportError
from distill.report.numbers import percent
from distill.run.context import RunContext, open_context
from distill.run.folder import check_finished, read_tree
from distill.stages.continued_run import earlier_tasks
from distill.stages.export_features import FEATURES
from distill.stages.export_stream import BANK
from distill.training.evaluate import Predictions


def evaluate_stream(
    path: Path,
    split: Split,
    console: Console,
    *,
    task: str | None = None,
    infer: str | None = None,
    images: Path | None = None,
    old_test: bool = False,
) -> dict[tuple[str, str], float]:
    """Accuracy of an exported stream.

    Args:
        path: the run folder.
        split: of the run's images.
        console: shows a table.
        task: name of the task of all images; None: each task's images with its own name, and by a rule.
        infer: type of the rule by which all images are predicted; None: the first one of the run.
        images: a folder with a subfolder for each class; None: the images of the run.
        old_test: also the images of the runs that it goes on with, read from the sources of their configs.

    Returns:
        (images of which task, or the folder's name; ``task`` or the rule) → accuracy.
    """
    if (path / "export" / FEATURES).is_dir():
        raise ExportError(
            f"{path}: no objective trained a classifier, so only its features are exported: use its report"
        )
    check_finished(path, path / "export" / BANK)
    experiment = cast(ContinualExperiment, read_run(path, operations=False)[0])
    bank = open_bank(path / "export" / BANK, infer)
    if task is not None and task not in bank.tasks:
        raise ExportError(f"{path}: no task {task!r}; there are {', '.join(bank.tasks)}")
    accuracies: dict[tuple[str, str], float] = {}
    if images is not None:
        if not images.is_dir():
            raise DataError(f"--images: {images} is {'a file, not a folder' if images.exists() else 'no folder'}")
        tree = read_tree(path)
        tree["data"]["source"] = {"type": "folder", "root": str(absolute(images))}
        given = cast(ContinualExperiment, validate_tree(tree, str(images), operations=False))
        with open_context(given, console) as context:
            missing = [name for name in context.data.classes if name not in bank.classes]
            if missing:
                raise DataError(
                    f"{images}: the class {missing[0]!r} is none of the {len(bank.classes)} that it learned"
                )
            splits: tuple[Split, ...] = ("train", "val", "test")
            way = task or infer or _default(bank)
            parts = [_predict(context, bank, name, way) for name in splits if context.data.has_split(name)]
            accuracies[images.name, way] = _accuracy(bank, parts, context.data.classes)
    else:
        for run in _runs(experiment, old_test):
            accuracies |= _of_tasks(run, bank, split, console, task, infer)
    _show(accuracies, console)
    return accuracies


def _runs(experiment: ContinualExperiment, old_test: bool) -> list[ContinualExperiment]:
    """The run, and before it those that it goes on with, if their images are asked for."""
    if not old_test:
        return [experiment]
    if experiment.continues is None:
        raise ExportError("--old-test: the run goes on with no other, so it has the images of all of its tasks")
    before = cast(ContinualExperiment, read_run(experiment.continues, operations=False)[0])
    return [*_runs(before, before.continues is not None), experiment]


def _of_tasks(
    experiment: ContinualExperiment,
    bank: ServedBank,
    split: Split,
    console: Console,
    task: str | None,
    infer: str | None,
) -> dict[tuple[str, str], float]:
    """The accuracies of the tasks of one run, whose images are read from the source of its config."""
    accuracies: dict[tuple[str, str], float] = {}
    with open_context(experiment, console) as context:
        earlier = earlier_tasks(experiment.continues) if experiment.continues else ()
        for each in renamed(open_stream(experiment), earlier):
            if task in (None, each.name):
                within = replace(context, data=each.data(context.data, each.classes, context.seed))
                for way in [task] if task else [infer] if infer else [each.name, _default(bank)]:
                    right = _accuracy(bank, [_predict(within, bank, split, way)], each.classes)
                    accuracies[each.name, "task" if way == each.name else way] = right
    return accuracies


def _default(bank: ServedBank) -> str:
    return bank.inference or "all classes"


def _predict(context: RunContext, bank: ServedBank, split: Split, way: str) -> Predictions:
    loader = context.loader(split, bank.input)
    if way in bank.tasks:
        return context.predict(bank, lambda view: bank(view, task=way), bank.input, loader)
    rule = way if way in bank.rules else None
    return context.predict(bank, lambda view: bank(view, infer=rule), bank.input, loader)


def _accuracy(bank: ServedBank, parts: list[Predictions], classes: Sequence[str]) -> float:
    columns = torch.tensor([bank.classes.index(name) for name in classes])
    right = images = 0
    for part in parts:
        labeled = part.labels != UNLABELED
        right += int((part.classes[labeled] == columns[part.labels[labeled]]).sum())
        images += int(labeled.sum())
    return right / images if images else float("nan")


def _show(accuracies: dict[tuple[str, str], float], console: Console) -> None:
    ways = list(dict.fromkeys(way for _, way in accuracies))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("images of", *(f"by its {way}" if way == "task" else way for way in ways)):
        table.add_column(heading, justify="left" if heading == "images of" else "right")
    for name in dict.fromkeys(name for name, _ in accuracies):
        table.add_row(Text(name), *(percent(accuracies.get((name, way))) for way in ways))
    console.print(table)
