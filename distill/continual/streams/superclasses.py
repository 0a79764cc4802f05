"""Superclasses: each is a task, or each is a class whose kinds come one after another."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from augment.base import did_you_mean
from distill.continual.cifar100 import TABLE
from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, indices_of, numbered, splits_of, task_name
from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash


class Superclasses(Stream):
    """Tasks from a table of classes and superclasses.

    ==================  ===========================================================================================
    tasks: superclass   each superclass is a task of its name, and its classes are predicted
    tasks: domain       the superclasses are the classes of every task; task k has the k-th class of each of them
    ==================  ===========================================================================================

    With CIFAR-100 and ``task_order: A`` to ``E``, the first is the SuperClass protocol of HALRP, 20 tasks of 5 classes.
    The second has 5 tasks of 20 classes.

    Papers: Li et al., HALRP, arXiv 2311.15161; table: Krizhevsky, 2009.

    Example:
        >>> from distill.continual.streams.superclasses import Superclasses
        >>> table = {"oak": "tree", "rose": "flower", "elm": "tree", "tulip": "flower"}
        >>> Superclasses(Superclasses.Settings(table=table)).groups(["elm", "oak", "rose", "tulip"])
        {'flower': ['rose', 'tulip'], 'tree': ['elm', 'oak']}
    """

    class Settings(Stream.Settings):
        type: Literal["superclasses"] = "superclasses"
        tasks: Literal["superclass", "domain"] = Field(
            "superclass", description="superclass: each is a task; domain: each is a class, with one kind in each task"
        )
        table: dict[str, str] | Path | None = Field(
            None,
            description="class → superclass, or a CSV file with the columns class and superclass; none: CIFAR-100's",
        )
        order: Literal["alphabetical", "keyed"] = Field(
            "alphabetical", description="tasks: domain: order of the classes of a superclass"
        )
        order_seed: int = Field(0, ge=0, description="of order: keyed; independent of the training seed")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.shared_classes = settings.tasks == "domain"

    def divide(self, data: ExperimentData) -> Sequence[Task]:
        groups = self.groups(self.labeled_classes(data))
        splits = splits_of(data)
        if self.settings.tasks == "superclass":
            return [
                Task(task_name(name), tuple(group), {split: indices_of(data, split, group) for split in splits})
                for name, group in groups.items()
            ]
        sizes = {len(group) for group in groups.values()}
        if len(sizes) > 1:
            few, many = (by(groups, key=lambda name: len(groups[name])) for by in (min, max))
            raise ContinualError(
                f"stream.tasks: domain needs superclasses of equally many classes, but {few!r} has {len(groups[few])} "
                f"and {many!r} {len(groups[many])}"
            )
        kinds = list(zip(*(self._ordered(group) for group in groups.values()), strict=True))
        return [
            Task(
                name,
                tuple(groups),
                {split: indices_of(data, split, kind) for split in splits},
                renamed=dict(zip(kind, groups, strict=True)),
            )
            for name, kind in zip(numbered(len(kinds)), kinds, strict=True)
        ]

    def groups(self, classes: Sequence[str]) -> dict[str, list[str]]:
        """Superclass → its classes, both in alphabetical order, without superclasses that have none of these classes.

        Raises:
            ContinualError: the table cannot be read or lacks a class.
        """
        table = self._table()
        if missing := [name for name in classes if name not in table]:
            hint = did_you_mean(missing[0], [name for name in table if name not in classes])
            default = " (the superclasses of CIFAR-100)" if self.settings.table is None else ""
            raise ContinualError(
                f"stream.table{default} has no superclass for {len(missing)} class(es), such as {missing[0]!r}{hint}"
            )
        groups: dict[str, list[str]] = {}
        for name in sorted(classes):
            groups.setdefault(table[name], []).append(name)
        return dict(sorted(groups.items()))

    def _table(self) -> Mapping[str, str]:
        given = self.settings.table
        if given is None:
            return TABLE
        return read_table(given) if isinstance(given, Path) else given

    def _ordered(self, classes: Sequence[str]) -> list[str]:
        if self.settings.order == "alphabetical":
            return list(classes)
        return [
            classes[i] for i in by_hash(range(len(classes)), classes, salt=f"class-order-{self.settings.order_seed}")
        ]


def read_table(path: Path) -> dict[str, str]:
    """Class → superclass of a CSV file with these columns. Raises ``ContinualError``."""
    columns = ("class", "superclass")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ContinualError(f"stream.table: {path} cannot be read: {error}") from error
    if not rows or any(name not in rows[0] for name in columns):
        raise ContinualError(f"stream.table: {path} has no rows with the columns {' and '.join(columns)}")
    table: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        name, superclass = (row[column] for column in columns)
        if not name or not superclass:
            raise ContinualError(f"stream.table: {path}, line {line}: class or superclass is empty")
        if table.setdefault(name, superclass) != superclass:
            raise ContinualError(f"stream.table: {path}, line {line}: {name!r} has two superclasses")
    return table
