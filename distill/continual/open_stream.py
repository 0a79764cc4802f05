"""Opens the data of a stream, to list its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distill.continual.streams.base import Stream
from distill.continual.task import Task
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
