"""The tasks of a stream in a few lines: for the opening of a run, and for ``distill data``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.continual.task import Task, classes_are_equal, splits_of
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.data.summary import OTHERS

LINES, NAMED = 12, 6
"""Largest number of tasks in the opening of a run, and of classes that are named."""


def task_lines(tasks: Sequence[Task], data: ExperimentData) -> list[str]:
    """A line for each of the first tasks: ``task-1: 250 training images, 36 for validation, …, 2 classes: 0, 1``.

    Args:
        tasks: of a stream, in their order.
        data: of which they are parts.

    Returns:
        The lines, with one about the tasks that are not shown and :func:`images_in_no_task`.
    """
    equal = classes_are_equal(tasks)
    lines = [_images(task) if equal else f"{_images(task)}, {class_names(task)}" for task in tasks[:LINES]]
    if (more := len(tasks) - LINES) > 0:
        lines.append(f"… {more} more tasks")
    first = f"tasks: {len(tasks)}" + (f" with the same {class_names(tasks[0])}" if equal else "")
    return [first, *(f"  {line}" for line in lines), *images_in_no_task(tasks, data)]


def class_names(task: Task) -> str:
    """Number and names of a task's classes, cut where there are many."""
    count = len(task.classes)
    names = ", ".join(task.classes[:NAMED]) + " …" * (count > NAMED)
    return f"{count} class{'es' * (count != 1)}" + (f": {names}" if names else "")


def images_in_no_task(tasks: Sequence[Task], data: ExperimentData) -> list[str]:
    """A line for each split that has images which no task has."""
    lines = []
    for split in splits_of(data):
        used = [task.indices[split] for task in tasks if split in task.indices]
        count = len(data.subset(split)) - len(np.unique(np.concatenate([np.empty(0, dtype=np.int64), *used])))
        if count:
            lines.append(f"{split}: {count:,} image{'s' * (count != 1)} in no task")
    return lines


def images_of(task: Task, split: Split) -> int:
    """Number of a task's images in a split."""
    return len(task.indices[split]) if split in task.indices else 0


def _images(task: Task) -> str:
    parts = [f"{images_of(task, 'train'):,} training images"]
    parts += [f"{images_of(task, split):,} for {name}" for split, name in OTHERS if split in task.indices]
    return f"{task.name}: {', '.join(parts)}"
