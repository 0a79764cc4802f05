"""Measures the time of data, augmentation, teacher and student in a step, without synchronizing the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SPANS = ("data", "augment", "teacher", "student")


class StepTimer:
    """Adds up seconds by span. On CUDA, a span is a pair of events, which only :meth:`read` evaluates.

    ``student`` covers its forward and backward pass, the objectives and the update. ``data`` is the time that the loop
    waits for the loader, host time on every device.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: dict[str, float | torch.cuda.Event] = {}

    def start(self, span: str) -> None:
        """Begin a span."""
        self._open[span] = self._now()

    def stop(self, span: str) -> None:
        """End a span that was begun."""
        begun = self._open.pop(span)
        if isinstance(begun, float):
            self._seconds[span] += time.perf_counter() - begun
        else:
            self._events.append((span, begun, self._now()))  # type: ignore[arg-type]

    def add(self, span: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._seconds[span] += seconds

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure the block."""
        self.start(name)
        yield
        self.stop(name)

    def read(self) -> dict[str, float]:
        """Span → seconds since the last read. Synchronizes CUDA: call it where the device is synchronized anyway."""
        if self._events:
            self._events[-1][2].synchronize()
        for span, begun, ended in self._events:
            self._seconds[span] += begun.elapsed_time(ended) / 1000
        seconds = {span: self._seconds[span] for span in SPANS}
        self._seconds.clear()
        self._events.clear()
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
