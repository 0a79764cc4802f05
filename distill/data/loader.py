"""Loaders: torch's ``DataLoader`` with a resumable order and errors that name the sample.

A worker gets requests for whole batches (epoch and positions), so its output does not depend on its number or on
earlier batches. The main process measures the seconds that it waits for data.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from distill.data.base import DataError
from distill.data.reader import Batch, BatchReader, BatchResult
from distill.data.samplers import BatchRequest, BatchRequests, EpochSampler

logger = logging.getLogger(__name__)
CHECK_SECONDS = 2.0
"""Seconds of waiting after which torch checks whether the workers are alive."""


class Loader:
    """Batches in the order of ``sampler``.

    Args:
        reader: reads a batch, in a worker.
        sampler: the requests of a pass; each ``iter`` starts a new pass.
        workers: number of worker processes; 0: the main process reads.
        timeout: seconds without a batch after which workers count as hung (only with workers).
        start_method: ``fork``, ``spawn``, ``forkserver``, or None for the platform's default.

    Raises (while iterating):
        DataError: too many samples are unreadable, a source raised an exception, or a worker died or hung; the text
            names the sample.
    """

    def __init__(
        self,
        reader: BatchReader,
        sampler: BatchRequests,
        *,
        workers: int = 0,
        timeout: float = 300,
        start_method: str | None = None,
    ):
        self.reader, self.sampler, self.timeout = reader, sampler, timeout
        self.workers, self.start_method = workers, start_method
        self.unreadable: dict[str, str] = {}
        """Id → reason of the samples that could not be read so far, each once."""
        self._waited = 0.0
        self._loader: DataLoader[BatchResult] = DataLoader(
            reader,
            batch_size=None,
            sampler=sampler,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            timeout=min(timeout, CHECK_SECONDS) if workers else 0,
            multiprocessing_context=start_method if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and reader.device.type == "cpu",
            generator=torch.Generator(),  # otherwise, each pass would draw from torch's global generator
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        iterator = self._start()
        while True:
            started = time.perf_counter()
            try:
                batch = self._accept(self._next(iterator))
            except StopIteration:
                return
            except DataError:
                # torch itself would wait 5 s for each hung worker.
                for worker in getattr(iterator, "_workers", ()):
                    worker.kill()
                raise
            finally:
                self._waited += time.perf_counter() - started
            yield batch

    def beside(self, reader: BatchReader, sampler: BatchRequests) -> Loader:
        """A separate loader with the same number and kind of workers."""
        return Loader(reader, sampler, workers=self.workers, timeout=self.timeout, start_method=self.start_method)

    def only(self, request: BatchRequest) -> Batch:
        """One batch, read in the main process, independent of any pass."""
        return self._accept(self.reader[request])

    def read_wait_seconds(self) -> float:
        """Seconds spent waiting for data since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def close(self) -> None:
        """End the worker processes now; another pass starts new ones.

        Lightning's trainer is a reference cycle that holds its loader, so without this call the workers of a finished
        fit stay until a garbage collection. If that runs in a process forked later, torch fails to end them there.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _start(self) -> Iterator[BatchResult]:
        """torch's iterator, without its SIGCHLD handler.

        That handler raises an error at an arbitrary point of the main process when a worker dies. Without it,
        :meth:`_next` gets the error while it waits for a batch, and can name the sample.
        """
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return iter(self._loader)
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _next(self, iterator: Iterator[BatchResult]) -> BatchResult:
        """The next result, waited for in short steps: torch checks its workers only when a wait times out."""
        started = time.perf_counter()
        while True:
            try:
                return next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # Samples do not raise, see BatchReader: a worker died or hung, or the shared memory of a batch is lost.
                timed_out = "timed out" in str(error)
                if timed_out and time.perf_counter() - started < self.timeout:
                    continue
                what = f"returned nothing for {self.timeout:g} s" if timed_out else "died"
                raise DataError(f"a data worker {what} while reading {self._in_work()}: {error}") from error

    def _in_work(self) -> str:
        reading = [(worker, index) for worker, index in enumerate(self.reader.reading.tolist()) if index >= 0]
        return (
            ", ".join(f"{self.reader.subset.ids[index]!r} (worker {worker})" for worker, index in reading)
            or "no sample"
        )

    def _accept(self, result: BatchResult) -> Batch:
        if result.error:
            raise DataError(result.error)
        for id, reason in result.unreadable:
            if id not in self.unreadable:
                self.unreadable[id] = reason
                logger.warning("skipped an unreadable image: %s", reason)
        if result.batch is None or len(self.unreadable) > self.reader.tolerated:
            reasons = "\n".join(f"  {reason}" for reason in self.unreadable.values())
            raise DataError(
                f"{len(self.unreadable)} unreadable image(s), {self.reader.tolerated} allowed here"
                f" (data.corrupt_budget; none in evaluation):\n{reasons}"
            )
        return result.batch


class TrainLoader(Loader):
    """Shuffled batches, one epoch for each ``iter``; after a finished epoch the next one, also without ``set_epoch``.

    Resumable between any two batches (``state_dict``, ``load_state_dict``: Lightning's protocol of stateful loaders).
    See :class:`distill.data.order.Order` and :class:`distill.data.samplers.EpochSampler`.

    Args:
        reader: reads a batch, in a worker; its order has whole batches.
        batch: samples in a batch over all ranks, a multiple of ``world``.
        rank: index of this process among those that divide each batch.
        world: number of these processes.
        options: further arguments of :class:`Loader`.
    """

    sampler: EpochSampler

    def __init__(self, reader: BatchReader, batch: int, *, rank: int = 0, world: int = 1, **options: Any):
        super().__init__(reader, EpochSampler(reader.order, batch, rank, world), **options)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: the sampler does not change before the first batch, so an unused iterator has no effect.
        self.sampler.begin()
        for batch in super().__iter__():
            self.sampler.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)


def _as_it_is(result: BatchResult) -> BatchResult:
    return result
