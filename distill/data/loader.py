"""Loaders: torch's ``DataLoader`` with an order that can be resumed, and errors that name the sample.

A batch is asked for as a whole (epoch and places), so what a worker makes depends on neither its number nor its past.
Measured in the main process: the seconds spent waiting for data.
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
from distill.data.reader import Batch, BatchReader, Fetched, Request

logger = logging.getLogger(__name__)


class Loader:
    """Batches of one pass over a part, in its order; rank ``r`` of ``world`` takes every ``world``-th sample.

    Nothing is padded: each sample counts once, over all ranks.

    Args:
        reader: what the workers run.
        batch: samples in a batch of this rank.
        workers: worker processes; 0 reads in the main process.
        timeout: seconds without a batch after which workers count as hung (only with workers).
        start_method: ``fork``, ``spawn``, ``forkserver``, or None for the platform's own.
        rank, world: this process's place among those that share the work.
    """

    def __init__(
        self,
        reader: BatchReader,
        batch: int,
        *,
        workers: int = 0,
        timeout: float = 300,
        start_method: str | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.reader, self.batch, self.rank, self.world, self.timeout = reader, batch, rank, world, timeout
        self.wait_seconds = 0.0
        """Seconds spent waiting for data since :meth:`read_wait_seconds` was last called."""
        self.unreadable: dict[str, str] = {}
        """Id → reason of the samples that could not be read so far, each once."""
        self._loader: DataLoader[Fetched] = DataLoader(
            reader,
            batch_size=None,
            sampler=_Requests(self),  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            timeout=timeout if workers else 0,
            multiprocessing_context=start_method if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # without its own, every pass draws from torch's global generator
        )

    def __len__(self) -> int:
        mine = len(range(self.rank, len(self.reader.part), self.world))
        return -(-mine // self.batch)

    def requests(self) -> Iterator[Request]:
        """The batches of the next pass."""
        mine = range(self.rank, len(self.reader.part), self.world)
        for first in range(0, len(mine), self.batch):
            yield Request(0, tuple(mine[first : first + self.batch]))

    def __iter__(self) -> Iterator[Batch]:
        iterator = self._start()
        while True:
            started = time.perf_counter()
            try:
                fetched = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:  # the only ones: workers that died, hung or could not start
                raise DataError(self._obituary(error)) from error
            finally:
                self.wait_seconds += time.perf_counter() - started
            yield self._accept(fetched)

    def read_wait_seconds(self) -> float:
        """Seconds spent waiting for data since the last call."""
        seconds, self.wait_seconds = self.wait_seconds, 0.0
        return seconds

    def _start(self) -> Iterator[Fetched]:
        """torch's iterator, without its SIGCHLD handler.

        That handler raises wherever the main process happens to be. Without it a dead worker is noticed within 5 s of
        waiting for its batch, here, where the sample can be named.
        """
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return iter(self._loader)
        before = signal.getsignal(signal.SIGCHLD)
        iterator = iter(self._loader)
        if before is not None:
            signal.signal(signal.SIGCHLD, before)
        return iterator

    def _accept(self, fetched: Fetched) -> Batch:
        if fetched.error:
            raise DataError(fetched.error)
        for id, reason in fetched.unreadable:
            if id not in self.unreadable:
                self.unreadable[id] = reason
                logger.warning("skipped an unreadable image: %s", reason)
        if fetched.batch is None or len(self.unreadable) > self.reader.tolerated:
            reasons = "\n".join(f"  {reason}" for reason in self.unreadable.values())
            raise DataError(
                f"{len(self.unreadable)} unreadable image(s), {self.reader.tolerated} allowed here"
                f" (data.corrupt_budget; none in evaluation):\n{reasons}"
            )
        return fetched.batch

    def _obituary(self, error: RuntimeError) -> str:
        reading = [(worker, index) for worker, index in enumerate(self.reader.reading.tolist()) if index >= 0]
        names = ", ".join(f"{self.reader.part.ids[index]!r} (worker {worker})" for worker, index in reading)
        what = f"was hung for {self.timeout:g} s" if "timed out" in str(error) else "died"
        return f"a data worker {what} while reading {names or 'no sample'}: {error}"


class TrainLoader(Loader):
    """Endless epochs of shuffled batches, resumable between any two batches.

    Epoch ``e`` is a permutation of all samples keyed by (seed, e). Global batch ``k`` is places ``kB … (k+1)B − 1``;
    rank ``r`` takes the ``r``-th run of ``B / world`` of them: all ranks together see what one process would. The
    incomplete last batch is dropped; a part smaller than one batch makes one smaller batch.

    Iterating gives one epoch. After a finished epoch the next iteration gives the following one, ``set_epoch`` or not.

    Args:
        batch: samples in a batch over all ranks, a multiple of ``world``.
    """

    def __init__(self, reader: BatchReader, batch: int, *, rank: int = 0, world: int = 1, **options: Any):
        samples = len(reader.part)
        if samples < world:
            raise DataError(f"{samples} training sample(s) for {world} ranks")
        if samples < batch:
            logger.warning("only %d training samples: smaller batches than %d", samples, batch)
            batch = samples // world * world
        super().__init__(reader, batch, rank=rank, world=world, **options)
        self.epoch, self.consumed = 0, 0
        self._first = 0  # batch at which the next iteration starts

    def __len__(self) -> int:
        """Batches of a whole epoch, also while resuming in the middle of one."""
        return len(self.reader.part) // self.batch

    @property
    def sampler(self) -> TrainLoader:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next iteration; the restored one continues where it was left, any other starts anew."""
        if epoch != self.epoch or self.consumed >= len(self):
            self.epoch, self.consumed, self._first = epoch, 0, 0

    def requests(self) -> Iterator[Request]:
        epoch, share = self.epoch, self.batch // self.world
        for batch in range(self.consumed, len(self)):
            first = batch * self.batch + self.rank * share
            yield Request(epoch, tuple(range(first, first + share)))

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing moves before the first batch is asked for, so an iterator made and left is harmless.
        if self.consumed >= len(self):
            self.epoch, self._first = self.epoch + 1, 0
        self.consumed, self._first = self._first, 0
        for batch in super().__iter__():
            self.consumed += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batches handed out (not those that workers have read ahead), and what they are counted in."""
        return {"epoch": self.epoch, "batches": self.consumed, **self._units()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last batch that was handed out.

        Raises:
            DataError: in the middle of an epoch of other data, another seed or batch size: places would not match.
        """
        if 0 < state["batches"] < state["samples"] // state["batch"]:
            for key, value in self._units().items():
                if state[key] != value:
                    raise DataError(f"cannot resume inside epoch {state['epoch']}: {key} was {state[key]}, is {value}")
            self.epoch, self._first = state["epoch"], state["batches"]
        else:
            self.epoch, self._first = state["epoch"] + (state["batches"] > 0), 0
        self.consumed = self._first

    def _units(self) -> dict[str, Any]:
        return {"samples": len(self.reader.part), "batch": self.batch, "seed": self.reader.order.seed}


class _Requests:
    """Hands a loader's requests to torch, which asks for them anew at every pass."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __iter__(self) -> Iterator[Request]:
        return self.loader.requests()

    def __len__(self) -> int:
        return len(self.loader)


def _as_it_is(fetched: Fetched) -> Fetched:
    return fetched
