"""The interface of streams: how the data is divided into tasks, and in which order the tasks come.

A stream returns the tasks of the data that there is. What learns from them gets one task at a time, and is told neither
how many tasks nor which classes will follow.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

import augment.base
from augment.base import Component, did_you_mean
from distill.continual.errors import ContinualError
from distill.continual.task import Task, check_tasks, without_empty
from distill.data.experiment_data import ExperimentData
from distill.data.split import by_hash

PaperOrder = Literal["A", "B", "C", "D", "E"]
# Orders A to E of HALRP (arXiv 2311.15161): of ten tasks of ten classes, and of the twenty superclasses.
PAPER_ORDERS: dict[int, dict[str, tuple[int, ...]]] = {
    10: {
        "A": tuple(range(10)),
        "B": (1, 7, 4, 5, 2, 0, 8, 6, 9, 3),
        "C": (7, 0, 5, 1, 8, 4, 3, 6, 2, 9),
        "D": (5, 8, 2, 9, 0, 4, 3, 7, 6, 1),
        "E": (2, 9, 5, 4, 8, 0, 6, 1, 3, 7),
    },
    20: {
        "A": tuple(range(20)),
        "B": (15, 12, 5, 9, 7, 16, 18, 17, 1, 0, 3, 8, 11, 14, 10, 6, 2, 4, 13, 19),
        "C": (17, 1, 19, 18, 12, 7, 6, 0, 11, 15, 10, 5, 13, 3, 9, 16, 4, 14, 2, 8),
        "D": (11, 9, 6, 5, 12, 4, 0, 10, 13, 7, 14, 3, 15, 16, 8, 1, 2, 19, 18, 17),
        "E": (6, 14, 0, 11, 12, 17, 13, 4, 9, 1, 7, 19, 8, 10, 3, 15, 18, 5, 2, 16),
    },
}


class Stream(Component):
    """A division of the data into tasks.

    Class attributes:
        shared_classes: whether a class may be in several tasks.
        epochs: number of passes over each task that the stream allows; None: any.
        boundaries: whether what learns may be told where a task ends.
    """

    class Settings(augment.base.Settings):
        type: str
        task_order: PaperOrder | Annotated[int, Field(ge=0)] | tuple[str, ...] | None = Field(
            None,
            description="order in which the tasks come: a seed, the names of all tasks, or A to E, the orders of HALRP "
            "for 10 and 20 tasks; none: the stream's own",
        )

    shared_classes: bool = False
    epochs: ClassVar[int | None] = None
    boundaries: ClassVar[bool] = True
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    @abstractmethod
    def divide(self, data: ExperimentData) -> Sequence[Task]:
        """The tasks in the stream's own order. Raises ``ContinualError``, whose text names the key."""

    def tasks(self, data: ExperimentData) -> list[Task]:
        """The tasks in the order in which they are learned.

        Raises:
            ContinualError: an empty task, one that cannot be evaluated, a class or a sample in two tasks, or an order
                that does not fit the tasks.
        """
        tasks = [without_empty(task) for task in self.divide(data)]
        check_tasks(tasks, data, self.shared_classes)
        return in_order(tasks, self.settings.task_order)

    def labeled_classes(self, data: ExperimentData) -> list[str]:
        """Names of the classes that a training image has, in the order of the data. Raises ``ContinualError``."""
        kind = self.settings.type
        if not data.classes:
            raise ContinualError(f"stream.type: {kind} needs a source with class names; images divides without labels")
        labels = set(data.subset("train").labels.tolist())
        present = [name for index, name in enumerate(data.classes) if index in labels]
        if not present:
            raise ContinualError(
                f"stream.type: {kind} needs labels, and no training image has one (data.labels_per_class "
                f"{data.settings.labels_per_class})"
            )
        return present


def in_order(tasks: Sequence[Task], order: str | int | tuple[str, ...] | None) -> list[Task]:
    """The tasks in the order of ``stream.task_order``. Raises ``ContinualError``."""
    names = [task.name for task in tasks]
    if order is None:
        return list(tasks)
    if isinstance(order, int):
        return [tasks[index] for index in by_hash(range(len(tasks)), names, salt=f"task-order-{order}")]
    if isinstance(order, str):
        if len(tasks) not in PAPER_ORDERS:
            raise ContinualError(
                f"stream.task_order: {order} is an order of 10 or 20 tasks, and there are {len(tasks)}"
            )
        return [tasks[index] for index in PAPER_ORDERS[len(tasks)][order]]
    for name in order:
        if name not in names:
            raise ContinualError(f"stream.task_order: there is no task {name!r}{did_you_mean(name, names)}")
    if sorted(order) != sorted(names):
        rest = [name for name in names if name not in order] or [name for name in order if order.count(name) > 1]
        raise ContinualError(f"stream.task_order must name each task once; check {', '.join(rest[:5])}")
    return [tasks[names.index(name)] for name in order]
