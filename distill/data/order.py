"""The order of samples in an epoch, its batches, and each rank's part of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from distill.data.base import UNLABELED, DataError


class BatchRequest(NamedTuple):
    """A batch that a worker reads: positions in the epoch's order."""

    epoch: int
    positions: Sequence[int]


class BatchRequests(Protocol):
    """The batches of a pass, in their order."""

    def __iter__(self) -> Iterator[BatchRequest]: ...

    def __len__(self) -> int: ...


class Order:
    """The order of samples in an epoch: a permutation keyed by (seed, epoch); with seed None, their own order."""

    def __init__(self, length: int, seed: int | None):
        self.length, self.seed = length, seed
        self.identity: dict[str, Any] = {}
        """What tells it from another order of the same samples and seed."""
        self._latest: tuple[int, np.ndarray] = (-1, np.arange(length))

    def __call__(self, epoch: int) -> np.ndarray:
        """int64 [length]: index of the sample at each position of an epoch, which is counted from 0."""
        if self.seed is not None and self._latest[0] != epoch:
            self._latest = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return self._latest[1]


class BalancedOrder(Order):
    """An order in which every class has equally many positions, whatever its number of samples.

    Of N labeled samples of K classes, each class has ⌊N/K⌋ or ⌈N/K⌉ positions in each epoch. The samples of a class
    take turns: it is passed through in a new random order again and again, across epochs, so two of its samples differ
    by at most one in how often they were drawn. A sample of a small class comes several times in an epoch, with the
    same augmentation each time (another one in the next epoch). A sample without a label comes once in an epoch.

    An epoch follows from (labels, seed, epoch) alone, so resuming and ranks are exact, as in :class:`Order`.

    Args:
        labels: [length] class indices, ``UNLABELED`` where a sample has none.
        seed: of the order.

    Raises:
        DataError: no sample has a label.
    """

    def __init__(self, labels: np.ndarray, seed: int):
        super().__init__(len(labels), seed)
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels != UNLABELED])]
        self._unlabeled = np.flatnonzero(labels == UNLABELED)
        if not self._members:
            raise DataError("data.sampler: balanced needs labels, and no training sample has one")
        self._key = seed
        self.identity = {"sampler": "balanced"}

    def __call__(self, epoch: int) -> np.ndarray:
        if self._latest[0] != epoch:
            each, rest = divmod(self.length - len(self._unlabeled), len(self._members))
            drawn = [self._unlabeled]
            for number, members in enumerate(self._members):
                # The classes take turns at the positions that remain: those of all epochs, one after the other.
                before, after = (-((number - turns * rest) // len(self._members)) for turns in (epoch, epoch + 1))
                drawn.append(self._turns(number, members, epoch * each + before, (epoch + 1) * each + after))
            order = np.concatenate(drawn)
            self._latest = epoch, np.random.default_rng((self._key, epoch)).permutation(order)
        return self._latest[1]

    def _turns(self, number: int, members: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Draws ``first`` to ``stop`` of a class, in the sequence of its random orders."""
        if stop == first:
            return members[:0]
        begun = first // len(members)
        orders = [
            np.random.default_rng((self._key, number, cycle, 1)).permutation(members)
            for cycle in range(begun, (stop - 1) // len(members) + 1)
        ]
        return np.concatenate(orders)[first - begun * len(members) : stop - begun * len(members)]


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
    ``B / world`` of them, so all ranks together get the batch of a single process. An incomplete last batch is dropped.

    Args:
        order: the samples' order in each epoch.
        batch: samples in a batch over all ranks, a multiple of ``world``.
        rank: index of this process.
        world: number of processes.
    """

    def __init__(self, order: Order, batch: int, rank: int = 0, world: int = 1):
        self.order, self.batch, self.rank, self.per_rank = order, batch, rank, batch // world
        self.epoch = 0
        self.consumed = 0
        """Batches of the epoch that were returned; the loader counts them, since workers read ahead."""
        self._first = 0  # batch at which the next pass starts

    def __len__(self) -> int:
        """Number of batches in a whole epoch, also after resuming in the middle of one."""
        return self.order.length // self.batch

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
        if 0 < state["batches"] < state["samples"] // state["batch"]:
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
