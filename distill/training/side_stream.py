"""Runs the teacher's forward pass at the same time as the student's on a GPU, on a second CUDA stream.

Neither waits for the other. Where one network alone does not fill the device (small networks, small batches, many
short kernels), both together take less time than one after the other. They use more memory, since each stream has a
memory pool of its own. On other devices the passes run one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class SideStream:
    """``with side.beside(inputs): …`` computes on a second stream; call ``side.join(outputs)`` before reading them."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def beside(self, inputs: Sequence[Tensor]) -> Iterator[None]:
        """Compute on the second stream within the block.

        Args:
            inputs: all tensors that the block reads; made on the current stream.
        """
        device = inputs[0].device
        if device.type != "cuda":
            yield
            return
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            yield
        for tensor in inputs:  # the allocator must not reuse their memory while the second stream reads them
            tensor.record_stream(self._stream)

    def join(self, outputs: Iterable[Tensor]) -> None:
        """Make the current stream wait for the second one; ``outputs`` are the tensors that it computed."""
        if self._stream is None:
            return
        current = torch.cuda.current_stream(self._stream.device)
        current.wait_stream(self._stream)
        for tensor in outputs:
            tensor.record_stream(current)
