"""Opens the data of a stream, to list its tasks, and numbers tasks that come after those of another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from distill.continual.errors import ContinualError
from distill.continual.streams.base import Stream
from distill.continual.task import Task, classes_are_equal
from distill.run.context import RunSettings, make_data


class StreamSettings(RunSettings, Protocol):
    """Settings of a run with a stream."""

    @property
    def stream(self) -> Stream.Settings: ...


def open_stream(settings: StreamSettings) -> Sequence[Task]:
    """The tasks of a stream, in the order in which they are learned.

    Args:
        settings: of the run; its data is listed, and no image is read.

    Returns:
        The tasks.

    Raises:
        DataError: the data cannot be used.
        ContinualError: it cannot be divided into such tasks.
    """
    return stream_in(settings).tasks(make_data(settings))


def stream_in(settings: StreamSettings) -> Stream:
    """The stream of a run."""
    assert settings.stream.component is not None and issubclass(settings.stream.component, Stream)
    return settings.stream.component(settings.stream)


def renamed(tasks: Sequence[Task], earlier: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks that follow those of another run, numbered on if their names are taken.

    Args:
        tasks: new ones.
        earlier: of the run that goes on; empty: the names stay.

    Returns:
        The new tasks.

    Raises:
        ContinualError: a class was learned before, in a stream whose tasks have different classes.
    """
    if not earlier:
        return tuple(tasks)
    owner = {name: task.name for task in earlier for name in task.classes}
    if not classes_are_equal((*earlier, *tasks)):
        for task in tasks:
            if known := [name for name in task.classes if name in owner]:
                raise ContinualError(f"stream: class {known[0]!r} was learned before, in {owner[known[0]]!r}")
    taken = {task.name for task in earlier}
    if not taken & {task.name for task in tasks}:
        return tuple(tasks)
    first = len(earlier) + 1
    return tuple(replace(task, name=f"task-{number}") for number, task in enumerate(tasks, first))
