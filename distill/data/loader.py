"""Loaders: torch's ``DataLoader`` with an order that can be resumed, and errors that name the sample.

A worker gets a whole batch to read (epoch and positions), so its output depends on neither its number nor its past.
The main process measures the seconds spent waiting for data.
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
from distill.data.order import BatchRequest, BatchRequests, EpochSampler
from distill.data.reader import Batch, BatchReader, BatchResult

logger = logging.getLogger(__name__)
CHECK_SECONDS = 2.0
"""How often waiting is interrupted to see whether the workers live."""


class Loader:
    """Batches in the order of ``sampler``.

    Args:
        reader: what the workers run.
        sampler: the requests of a pass, anew at every ``iter``.
        workers: worker processes; 0 reads in the main process.
        timeout: seconds without a batch after which workers count as hung (only with workers).
        start_method: ``fork``, ``spawn``, ``forkserver``, or None for the platform's own.

    Raises (while iterating):
        DataError: an unreadable sample beyond what is tolerated, a source that raised, a worker that died or hung; the
            text names the sample.
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
            generator=torch.Generator(),  # without its own, every pass draws from torch's global generator
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
                # Torch's own way to end them waits 5 s for each that hangs.
                for worker in getattr(iterator, "_workers", ()):
                    worker.kill()
                raise
            finally:
                self._waited += time.perf_counter() - started
            yield batch

    def beside(self, reader: BatchReader, sampler: BatchRequests) -> Loader:
        """Another loader with the same number and kind of workers."""
        return Loader(reader, sampler, workers=self.workers, timeout=self.timeout, start_method=self.start_method)

    def only(self, request: BatchRequest) -> Batch:
        """One batch, read at once; no pass is started or moved."""
        return self._accept(self.reader[request])

    def read_wait_seconds(self) -> float:
        """Seconds spent waiting for data since the last call."""
        seconds, self._waited = self._waited, 0.0
        return seconds

    def close(self) -> None:
        """End the worker processes now; another pass starts new ones.

        Lightning's trainer is a reference cycle that holds its loader. Left to the garbage collector, the workers of a
        finished fit idle on, and the collector of a process forked later finds them too, where torch fails to end them.
        """
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and self._loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def _start(self) -> Iterator[BatchResult]:
        """torch's iterator, without its SIGCHLD handler.

        That handler raises wherever the main process happens to be when a worker dies. Without it the death is noticed
        while waiting for the worker's batch, in :meth:`_next`, where the sample can be named.
        """
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return iter(self._loader)
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _next(self, iterator: Iterator[BatchResult]) -> BatchResult:
        """The next answer, waited for in steps: torch looks after its workers only when a wait ends without one."""
        started = time.perf_counter()
        while True:
            try:
                return next(iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # Samples do not raise, see BatchReader: this is about workers, or a batch whose memory went with one.
                timed_out = "timed out" in str(error)
                if timed_out and time.perf_counter() - started < self.timeout:
                    continue
                what = f"gave nothing for {self.timeout:g} s" if timed_out else "died"
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
    """Shuffled batches, one epoch per ``iter``: the next epoch after a finished one, ``set_epoch`` or not.

    Resumable between any two batches (``state_dict``, ``load_state_dict``: Lightning's protocol of stateful loaders). A
    subset smaller than one batch makes one smaller batch. See :class:`distill.data.order.EpochSampler`.

    Args:
        reader: what the workers run.
        batch: samples in a batch over all ranks, a multiple of ``world``.
        rank: index of this process among those that share every batch.
        world: number of those processes.
        options: further ones of :class:`Loader`.
    """

    sampler: EpochSampler

    def __init__(self, reader: BatchReader, batch: int, *, rank: int = 0, world: int = 1, **options: Any):
        samples = len(reader.subset)
        if samples < world:
            raise DataError(f"{samples} training sample(s) for {world} ranks")
        if samples < batch:
            logger.warning("only %d training samples: smaller batches than %d", samples, batch)
            batch = samples // world * world
        super().__init__(reader, EpochSampler(reader.order, batch, rank, world), **options)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing moves before the first batch is asked for, so an iterator made and left is harmless.
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
