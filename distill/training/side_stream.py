"""The teacher's forward pass beside the student's on a GPU.

Neither waits for the other, so where one alone leaves the device idle (small networks, small batches, many short
kernels) both together take less than their sum. Their memory is not shared: what the teacher computes lies in a pool of
its own. On other devices one comes after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """``with side.beside(inputs): …`` computes on a second stream; ``side.join(outputs)`` before those are read."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def beside(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Args: ``inputs``, made on the current stream."""
        device = inputs[0].device
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield
        for tensor in inputs:  # the allocator must not hand their memory out again while they are read there
            tensor.record_stream(self._stream)

    def join(self, outputs: Iterable[Tensor]) -> None:
        """Have the current stream wait for what was computed beside it."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in outputs:
            tensor.record_stream(current)
