"""A task of a stream: its classes, and its samples in each split."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from distill.continual.errors import ContinualError
from distill.data.base import UNLABELED, Samples, Split
from distill.data.experiment_data import ExperimentData
from distill.data.split import Subset

EVALUATED: tuple[Split, ...] = ("test", "val")
SHOWN = 5
"""Classes of a task that an error names."""


@dataclass(frozen=True)
class Task:
    """A task of a stream.

    Args:
        name: does not depend on the position in the stream: what is random in a task is keyed by it.
        classes: names of the classes of its samples.
        indices: split → positions of its samples in ``ExperimentData.subset(split)``.
        samples: split → images of that split to read in place of the data's own, with as many samples in the same
            order; such as images that an augmentation moves to another domain.
        renamed: class of the data → class of the task, for samples whose label is another one here, such as the
            superclass.
    """

    name: str
    classes: tuple[str, ...]
    indices: Mapping[Split, np.ndarray] = field(repr=False, compare=False)
    samples: Mapping[Split, Samples] = field(default_factory=dict, repr=False, compare=False)
    renamed: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def subset(self, data: ExperimentData, split: Split, classes: Sequence[str]) -> Subset:
        """Its samples of a split, with labels that are indices into ``classes``.

        Args:
            data: the whole data, of which this is a task.
            split: one that the task has.
            classes: names, which contain all classes of the task.

        Returns:
            The samples.
        """
        whole = data.subset(split)
        chosen = self.indices[split]
        new = np.full(len(data.classes) + 1, UNLABELED, dtype=np.int64)  # the last entry is for UNLABELED, -1
        at = {name: index for index, name in enumerate(classes)}
        for index, name in enumerate(data.classes):
            new[index] = at.get(self.renamed.get(name, name), UNLABELED)
        labels = new[whole.labels[chosen]]
        return Subset(self.samples.get(split, whole.samples), whole.indices[chosen], labels)

    def images(self, split: Split) -> Hashable:
        """Equal for two tasks of a stream that have the same images with the same labels in a split."""
        rows, samples = self.indices[split], self.samples.get(split)
        return rows.tobytes(), id(samples) if samples is not None else None, self.classes, tuple(self.renamed.items())

    def data(self, data: ExperimentData, classes: Sequence[str], seed: int) -> ExperimentData:
        """The data restricted to this task.

        Args:
            data: the whole data.
            classes: names of the classes of the labels.
            seed: of the run; that of the part is keyed by the task's name.

        Returns:
            Data that holds no sample of another task.
        """
        subsets = {split: self.subset(data, split, classes) for split in self.indices}
        return data.part(classes, subsets, keyed_seed(seed, self.name))


def union(tasks: Sequence[Task]) -> Task:
    """All samples of some tasks as one, with the name of the last.

    Raises:
        ContinualError: a task reads other images than the data's own, or a class is renamed to two others.
    """
    last = tasks[-1]
    if moved := [task.name for task in tasks if task.samples]:
        raise ContinualError(f"stream: the images of {moved[0]!r} are not the data's own, so tasks cannot be joined")
    classes = tuple(dict.fromkeys(name for task in tasks for name in task.classes))
    splits = dict.fromkeys(split for task in tasks for split in task.indices)
    indices = {
        split: np.concatenate([task.indices[split] for task in tasks if split in task.indices]) for split in splits
    }
    renamed: dict[str, str] = {}
    for task in tasks:
        for name, new in task.renamed.items():
            if renamed.setdefault(name, new) != new:
                raise ContinualError(
                    f"stream: {name!r} is {renamed[name]!r} and {new!r} in two tasks, so they cannot be joined"
                )
    return Task(last.name, classes, indices, renamed=renamed)


def keyed_seed(seed: int, name: str) -> int:
    """A seed below 2³¹ for what is random in a task, a function of the run's seed and the name alone."""
    return int.from_bytes(sha256(f"{seed}/{name}".encode()).digest()[:4], "big") >> 1


def task_name(words: str) -> str:
    """A text as a task's name: letters, digits, ``-`` and ``.``, as stages and folders need it."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")
    return name or f"task-{sha256(words.encode()).hexdigest()[:6]}"


def numbered(count: int) -> list[str]:
    """Names of tasks without one of their own: ``task-1`` …, whatever their number, since what is random is keyed by
    them."""
    return [f"task-{number}" for number in range(1, count + 1)]


def indices_of(data: ExperimentData, split: Split, classes: Iterable[str]) -> np.ndarray:
    """Positions of the samples of some classes.

    Args:
        data: of the stream.
        split: of the samples.
        classes: names of the classes.

    Returns:
        int64 indices into ``data.subset(split)``.
    """
    wanted = [index for index, name in enumerate(data.classes) if name in set(classes)]
    return np.flatnonzero(np.isin(data.subset(split).labels, wanted))


def splits_of(data: ExperimentData) -> list[Split]:
    """The splits that the data has."""
    splits: tuple[Split, ...] = ("train", "val", "test")
    return [split for split in splits if data.has_split(split)]


def evaluation_split(data: ExperimentData) -> Split:
    """The split that tasks are evaluated on: test, or val without a test split. Raises ``ContinualError``."""
    for split in EVALUATED:
        if data.has_split(split):
            return split
    raise ContinualError("data.val_fraction: there is neither a test nor a val split, so no task can be evaluated")


def without_empty(task: Task) -> Task:
    """The task without the splits of which it has no sample."""
    return replace(task, indices={split: rows for split, rows in task.indices.items() if len(rows)})


def classes_are_equal(tasks: Sequence[Task]) -> bool:
    """Whether there are several tasks and all have the same classes, so that one can be predicted before it came."""
    return len(tasks) > 1 and all(set(task.classes) == set(tasks[0].classes) for task in tasks)


def check_tasks(tasks: Sequence[Task], data: ExperimentData, shared_classes: bool) -> None:
    """Raise ``ContinualError`` for tasks that nothing can be learned from.

    Args:
        tasks: of the stream.
        data: of which they are parts.
        shared_classes: whether a class may be in several tasks.
    """
    if not tasks:
        raise ContinualError("stream: there are no tasks")
    evaluated = evaluation_split(data)
    names: set[str] = set()
    owner: dict[str, str] = {}
    of_sample: dict[int, str] = {}
    for task in tasks:
        if task.name in names:
            raise ContinualError(f"stream: two tasks are called {task.name!r}")
        names.add(task.name)
        for split, what in (("train", "training"), (evaluated, evaluated)):
            if not len(task.indices.get(split, ())):  # type: ignore[call-overload]
                raise ContinualError(f"stream: the task {task.name!r} has no {what} images{_such_as(task)}")
        for name in task.classes:
            if name in owner and not shared_classes:
                raise ContinualError(f"stream: the class {name!r} is in two tasks, {owner[name]!r} and {task.name!r}")
            owner[name] = task.name
        for index in task.indices["train"].tolist():
            if index in of_sample and not task.samples:
                image = data.subset("train").ids[index]
                raise ContinualError(f"stream: {image} is in two tasks, {of_sample[index]!r} and {task.name!r}")
            of_sample[index] = task.name


def _such_as(task: Task) -> str:
    """A few of the classes of a task, for errors."""
    more = len(task.classes) - SHOWN
    return f"; its classes are {', '.join(task.classes[:SHOWN])}{' …' * (more > 0)}" if task.classes else ""
