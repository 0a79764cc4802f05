"""How much of the step goes to data, augmentation, teacher and student, without waiting for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

SPANS = ("data", "augment", "teacher", "student")


class StepTimer:
    """Adds up seconds by span. On CUDA a span is a pair of events, read only when ``read`` is called.

    The student's span holds its forward and backward pass, the objectives and the update; ``data`` is the time that
    the loop waited for the loader, which is host time on every device.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._open: dict[str, float | torch.cuda.Event] = {}

    def start(self, span: str) -> None:
        self._open[span] = self._now()

    def stop(self, span: str) -> None:
        begun = self._open.pop(span)
        if isinstance(begun, float):
            self._seconds[span] += time.perf_counter() - begun
        else:
            self._events.append((span, begun, self._now()))  # type: ignore[arg-type]

    def add(self, span: str, seconds: float) -> None:
        self._seconds[span] += seconds

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        self.start(name)
        yield
        self.stop(name)

    def read(self) -> dict[str, float]:
        """Seconds by span since the last read. Waits for the last event on CUDA: call it where one waits anyway."""
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
