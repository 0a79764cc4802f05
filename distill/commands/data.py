"""``distill data CONFIG``: splits, classes, image sizes, what is not read, equal images, and a picture of samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from distill.continual.open_stream import stream_in
from distill.continual.summary import class_names, images_in_no_task, images_of
from distill.data.base import Split
from distill.data.experiment_data import SPLITS, ExperimentData
from distill.data.inspection import Decoded, ImagePlace, Inspection, inspect
from distill.data.samples_sheet import write_samples
from distill.data.summary import count_by_class, counts_line, detail_lines
from distill.experiments.base import Experiment
from distill.experiments.continual import ContinualExperiment
from distill.report.numbers import MISSING, count

SHOWN_CLASSES, SHOWN = 40, 5
"""Rows of the table of classes, and images that a line names."""


def show_data(experiment: Experiment, console: Console, to: Path | None, images: int, decode: bool) -> None:
    """Print what the data of an experiment holds.

    Args:
        experiment: its config.
        console: where to print.
        to: picture of samples to write, PNG; None: none.
        images: samples in a row of the picture, of each split.
        decode: decode all images, for their sizes, unreadable ones, and images that are equal.
    """
    data = ExperimentData(experiment.data, experiment.seed)
    _print(console, counts_line(data))
    for line in detail_lines(data):
        _print(console, f"  {line}")
    visible, data = data, data.with_all_labels()
    splits = [split for split in SPLITS if data.has_split(split)]
    inspection = _inspected(data, splits, console) if decode else None
    console.print(_split_table(data, splits, inspection))
    if isinstance(experiment, ContinualExperiment):
        _print_tasks(experiment, visible, console)
    if data.classes:
        console.print(_class_table(data, splits))
    if inspection is not None:
        for line in _findings(data, inspection):
            _print(console, line)
    if to is not None:
        write_samples(data, splits, to, images)
        _print(console, f"wrote {to}")


def _inspected(data: ExperimentData, splits: Sequence[Split], console: Console) -> Inspection:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("decoding", total=sum(len(data.subset(split)) for split in splits))
        return inspect(data, lambda images: progress.advance(task, images))


def _split_table(data: ExperimentData, splits: Sequence[Split], inspection: Inspection | None) -> Table:
    columns = ["split", "images", "labeled", "classes"]
    columns += ["unreadable", "smallest", "median", "largest"] if inspection else []
    table = _table(columns)
    for split in splits:
        counts = count_by_class(data, split)
        numbers = [count(len(data.subset(split))), count(sum(counts)), count(sum(number > 0 for number in counts))]
        table.add_row(split, *numbers, *(_sizes(inspection.splits[split]) if inspection else []))
    return table


def _sizes(decoded: Decoded) -> list[str]:
    """Number of unreadable images; smallest, median and largest width × height by area."""
    unreadable = count(len(decoded.unreadable))
    if not len(decoded.sizes):
        return [unreadable, MISSING, MISSING, MISSING]
    order = np.argsort(decoded.sizes.prod(axis=1), kind="stable")
    picked = decoded.sizes[order[[0, len(order) // 2, -1]]]
    return [unreadable, *(f"{width}×{height}" for width, height in picked.tolist())]


def _print_tasks(experiment: ContinualExperiment, data: ExperimentData, console: Console) -> None:
    """A table of the tasks, in the order in which they are learned."""
    tasks = stream_in(experiment).tasks(data)
    splits = [split for split in SPLITS if data.has_split(split)]
    table = _table(["task", *splits])
    table.columns[0].no_wrap = True  # names of classes are folded instead
    table.add_column("classes", overflow="fold")
    for task in tasks:
        numbers = [count(images_of(task, split)) for split in splits]
        table.add_row(Text(task.name), *numbers, Text(class_names(task)))
    console.print(table)
    for line in images_in_no_task(tasks, data):
        _print(console, line)


def _class_table(data: ExperimentData, splits: Sequence[Split]) -> Table:
    table = _table(["class", *splits])
    counts = np.array([count_by_class(data, split) for split in splits]).T
    rows: Iterable[int] = range(len(counts))
    if len(counts) > SHOWN_CLASSES:
        order = np.argsort(-counts[:, 0], kind="stable")
        rows = [*order[: SHOWN_CLASSES // 2].tolist(), -1, *order[-SHOWN_CLASSES // 2 :].tolist()]
    for row in rows:
        if row < 0:
            table.add_row(f"… {len(counts) - SHOWN_CLASSES} more", *["…"] * len(splits))
        else:
            table.add_row(Text(data.classes[row]), *map(count, counts[row].tolist()))
    return table


def _table(columns: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for index, name in enumerate(columns):
        if index:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold")
    return table


def _findings(data: ExperimentData, inspection: Inspection) -> list[str]:
    """Lines about unreadable, small and equal images."""
    lines = []
    for split, decoded in inspection.splits.items():
        for reason in list(decoded.unreadable.values())[:SHOWN]:
            lines.append(f"unreadable in {split}: {reason}")
        if (more := len(decoded.unreadable) - SHOWN) > 0:
            lines.append(f"unreadable in {split}: {more:,} more")
        if small := int((decoded.sizes.min(axis=1) < data.settings.size).sum()) if len(decoded.sizes) else 0:
            lines.append(
                f"{split}: {small:,} of {len(decoded.sizes):,} images have a side below data.size {data.settings.size},"
                " to which they are enlarged"
            )
    for (first, second), groups in inspection.shared().items():
        lines += [f"{first} and {second} share {_pictures(groups)}:", *_examples(groups)]
    if repeated := inspection.repeated():
        lines += [f"{_pictures(repeated)} more than once in a split:", *_examples(repeated)]
    if wrong := inspection.contradictory():
        lines += [f"{_pictures(wrong)} with different labels:", *_examples(wrong)]
    if not inspection.equal:
        lines.append("no two images have the same pixels")
    return lines


def _pictures(groups: Sequence[Sequence[ImagePlace]]) -> str:
    return f"{len(groups):,} picture{'s' * (len(groups) != 1)}"


def _examples(groups: Sequence[Sequence[ImagePlace]]) -> list[str]:
    """A line for each of the first groups; ids of another split than train have its name."""
    lines = ["  " + " = ".join(map(_named, group[:3])) + " …" * (len(group) > 3) for group in groups[:SHOWN]]
    return lines + [f"  and {len(groups) - SHOWN:,} more"] * (len(groups) > SHOWN)


def _named(place: ImagePlace) -> str:
    return place.id if place.id.startswith(place.split) else f"{place.id} ({place.split})"


def _print(console: Console, line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True, markup=False)
