"""The batches of a pass, and each rank's part of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from distill.data.base import DataError
from distill.data.order import Order


class BatchRequest(NamedTuple):
    """A batch that a worker reads: positions in the epoch's order."""

    epoch: int
    positions: Sequence[int]


class BatchRequests(Protocol):
    """The batches of a pass, in their order."""

    def __iter__(self) -> Iterator[BatchRequest]: ...

    def __len__(self) -> int: ...


class SequentialSampler:
    """Batches of every ``world``-th position from ``rank`` on. Nothing is padded or dropped.

    Args:
        samples: number of samples over all ranks.
        batch: samples in a batch of this rank.
        rank: index of this process.
        world: number of processes.
    """

    def __init__(self, samples: int, batch: int, rank: int = 0, world: int = 1):
        self.positions, self.batch = range(rank, samples, world), batch

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch)

    def __iter__(self) -> Iterator[BatchRequest]:
        for first in range(0, len(self.positions), self.batch):
            yield BatchRequest(0, self.positions[first : first + self.batch])


class EpochSampler:
    """The batches of training, epoch by epoch, resumable between any two batches.

    Global batch ``k`` is positions ``kB … (k+1)B − 1`` of the epoch's order; rank ``r`` gets the ``r``-th section of
    ``B / world`` of them, so all ranks together get the batch of a single process. The order has whole batches.

    Args:
        order: the samples' order in each epoch, for batches of this size.
        batch: samples in a batch over all ranks, a multiple of ``world``.
        rank: index of this process.
        world: number of processes.
    """

    def __init__(self, order: Order, batch: int, rank: int = 0, world: int = 1):
        if order.positions % batch:
            raise ValueError(f"an order of {order.positions} positions has no whole batches of {batch}")
        self.order, self.batch, self.rank, self.per_rank = order, batch, rank, batch // world
        self.epoch = 0
        self.consumed = 0
        """Batches of the epoch that were returned; the loader counts them, since workers read ahead."""
        self._first = 0  # batch at which the next pass starts

    def __len__(self) -> int:
        """Number of batches in a whole epoch, also after resuming in the middle of one."""
        return self.order.positions // self.batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; a restored epoch continues after its last batch, any other from its start."""
        if epoch != self.epoch or self.consumed >= len(self):
            self.epoch, self.consumed, self._first = epoch, 0, 0

    def begin(self) -> None:
        """Start a pass: the rest of a restored epoch, the epoch that is set, or the epoch after a finished one."""
        if self.consumed >= len(self):
            self.epoch, self._first = self.epoch + 1, 0
        self.consumed, self._first = self._first, 0

    def __iter__(self) -> Iterator[BatchRequest]:
        epoch = self.epoch
        for number in range(self.consumed, len(self)):
            yield self.request(epoch, number)

    def request(self, epoch: int, number: int) -> BatchRequest:
        """This rank's part of batch ``number`` of an epoch, both counted from 0."""
        first = number * self.batch + self.rank * self.per_rank
        return BatchRequest(epoch, range(first, first + self.per_rank))

    def state_dict(self) -> dict[str, Any]:
        """Epoch, number of batches that were returned, and the data, batch size and seed that they belong to."""
        return {"epoch": self.epoch, "batches": self.consumed, **self._units()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the last batch that was returned.

        Raises:
            DataError: the state is in the middle of an epoch with other data, another seed or batch size.
        """
        if 0 < state["batches"] < -(-state["samples"] // state["batch"]):
            units = self._units()
            for key in dict.fromkeys([*units, *state]):
                before, now = state.get(key), units.get(key)
                if key not in ("epoch", "batches") and before != now:
                    raise DataError(f"cannot resume inside epoch {state['epoch']}: {key} was {before}, is {now}")
            self.epoch, self._first = state["epoch"], state["batches"]
        else:
            self.epoch, self._first = state["epoch"] + (state["batches"] > 0), 0
        self.consumed = self._first

    def _units(self) -> dict[str, Any]:
        return {"samples": self.order.length, "batch": self.batch, "seed": self.order.seed, **self.order.identity}
