"""Tasks from a file that names the task of each image."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field

from augment.base import did_you_mean
from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, indices_of, splits_of, task_name
from distill.data.base import UNLABELED, Split
from distill.data.experiment_data import ExperimentData

SHOWN = 3
"""Ids that an error names."""
Rows = Mapping[Split, Mapping[str, str]]
"""Split → id → task."""


class Manifest(Stream):
    """A CSV file with the columns ``id``, ``task`` and optionally ``split``, or a JSON list of objects with these keys.

    Ids are those of the source, which its documentation describes. Tasks come in the order in which the file first
    names them. A row without a split is looked up in all splits; ``train`` includes the images that are held out of it
    for val. A split of which the file names no image is divided by the classes of the tasks.

    An id that the data does not have, one that has two tasks, and an image of a named split without a task are errors;
    with ``partial``, images without a task are left out, and the run shows their number.

    Example:
        >>> from distill.continual.streams.manifest import Manifest, rows_of
        >>> rows_of([{"id": "a.png", "task": "day"}, {"id": "b.png", "task": "night", "split": "test"}])
        [('a.png', 'day', None), ('b.png', 'night', 'test')]
    """

    class Settings(Stream.Settings):
        type: Literal["manifest"] = "manifest"
        file: Path = Field(description="CSV or JSON file, relative to the current folder")
        partial: bool = Field(False, description="images of a named split that the file lacks are left out")

    shared_classes = True
    settings: Settings

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        try:
            rows = rows_of(read_rows(self.settings.file))
        except ValueError as error:
            raise ContinualError(f"stream.file: {self.settings.file}: {error}") from error
        named = self._by_split(rows, data)
        of_image = {
            split: np.array([of_id.get(id, "") for id in data.subset(split).ids]) for split, of_id in named.items()
        }
        tasks = []
        for task in dict.fromkeys(task for _, task, _ in rows):
            indices = {split: np.flatnonzero(tasks_N == task) for split, tasks_N in of_image.items()}
            train = data.subset("train")
            labels = set(train.labels[indices["train"]].tolist()) - {UNLABELED}
            classes = tuple(name for index, name in enumerate(data.classes) if index in labels)
            for split in splits_of(data):
                if split not in indices:
                    indices[split] = indices_of(data, split, classes)
            tasks.append(Task(task_name(task), classes, indices))
        return tasks

    def _by_split(self, rows: Sequence[tuple[str, str, Split | None]], data: ExperimentData) -> Rows:
        """The tasks of the ids of each split that has one. Raises ``ContinualError``."""
        splits = splits_of(data)
        known = {split: set(data.subset(split).ids) for split in splits}
        named: dict[Split, dict[str, str]] = {"train": {}}
        unknown = []
        for id, task, given in rows:
            among = splits if given is None else ("train", "val") if given == "train" else (given,)
            places = [split for split in splits if split in among and id in known[split]]
            if not places:
                unknown.append(id if given is None else f"{id} ({given})")
            for split in places:
                if named.setdefault(split, {}).setdefault(id, task) != task:
                    first = named[split][id]
                    raise self._error(f"{id} is in two tasks, {first!r} and {task!r}")
        if unknown:
            hint = did_you_mean(unknown[0], sorted(known["train"])[:1000])
            raise self._error(f"the data has no {_some(unknown)}{hint}; an id of it is {data.subset('train').ids[0]}")
        for split in named:
            if (
                without := [id for id in data.subset(split).ids if id not in named[split]]
            ) and not self.settings.partial:
                raise self._error(f"no task for {_some(without)} of {split}; partial: true leaves such images out")
        return named

    def _error(self, text: str) -> ContinualError:
        return ContinualError(f"stream.file: {self.settings.file}: {text}")


def _some(ids: Sequence[str]) -> str:
    return f"{len(ids):,} image(s), such as {', '.join(ids[:SHOWN])}"


def read_rows(path: Path) -> list[Any]:
    """The rows of a CSV or JSON file. Raises ``ValueError``, whose text does not name the file."""
    if path.suffix.lower() not in (".csv", ".json"):
        raise ValueError("expected a file whose name ends in .csv or .json")
    try:
        if path.suffix.lower() == ".json":
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
            if not isinstance(rows, list):
                raise ValueError("expected a list of objects with id and task")
            return rows
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise ValueError(f"cannot be read: {error}") from error


def rows_of(rows: Sequence[Any]) -> list[tuple[str, str, Split | None]]:
    """The id, task and split (None without one) of each row. Raises ``ValueError``, whose text names the row."""
    read: list[tuple[str, str, Split | None]] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or not all(
            isinstance(row.get(key), str) and row[key] for key in ("id", "task")
        ):
            raise ValueError(f"row {number} has no id and task, which are texts: {row!r}")
        split = row.get("split") or None
        if split is not None and split not in get_args(Split):
            raise ValueError(f"row {number}: split is train, val or test, not {split!r}")
        read.append((row["id"], row["task"], split))
    if not read:
        raise ValueError("it has no rows")
    seen: set[tuple[str, Split | None]] = set()
    for number, (id, _, split) in enumerate(read, 1):
        if (id, split) in seen:
            raise ValueError(f"row {number}: {id} is there twice")
        seen.add((id, split))
    return read
