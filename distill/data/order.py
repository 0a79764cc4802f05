"""The order of samples in an epoch, its batches, and each rank's part of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from augment.draws import copy_key
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
    """The order of samples in an epoch: a permutation keyed by (seed, epoch), filled up to whole batches.

    Of N samples in batches of B, an epoch has ⌈N/B⌉ · B positions. Every sample has one. The other F = −N mod B
    positions fill the last batch with samples that come a second time, which are taken in turn, across epochs, from one
    random order: two samples differ by at most one in how often they were trained on, whatever the number of epochs.
    No sample is twice in one batch, and its second copy has an id, and so an augmentation, of its own (:meth:`copies`).

    Why the last batch is neither dropped nor smaller: all batches have one shape (compiled networks, batch norm,
    contrast within a batch, mixing, equal parts for the ranks, equal weight of every image in a gradient), and an epoch
    follows from (N, B, seed, epoch) alone, so resuming is exact without any state.

    Args:
        length: number of samples N.
        seed: of the order; None: the samples' own order, without repetition.
        batch: B; 1: no position is added.
    """

    def __init__(self, length: int, seed: int | None, batch: int = 1):
        self.length, self.seed = length, seed
        self.positions = -(-length // batch) * batch
        """Number of positions of an epoch."""
        self.identity: dict[str, Any] = {}
        """What tells it from another order of the same samples and seed."""
        self.batch = batch
        self._latest: tuple[int, np.ndarray, np.ndarray] | None = None

    def __call__(self, epoch: int) -> np.ndarray:
        """int64 [positions]: index of the sample at each position of an epoch, which is counted from 0."""
        return self._of(epoch)[0]

    def copies(self, epoch: int) -> np.ndarray:
        """int64 [positions]: how often the sample of a position came before in the epoch."""
        return self._of(epoch)[1]

    @property
    def most_repeats(self) -> int:
        """Largest number of positions of an epoch at which a sample comes again."""
        return self.positions - self.length

    def _of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if self._latest is None or self._latest[0] != epoch:
            order = self._arranged(epoch)
            self._latest = epoch, order, _copies(order)
        return self._latest[1:]

    def _arranged(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(self.length)
        rng = np.random.default_rng((self.seed, epoch))
        order, fill = rng.permutation(self.length), self.most_repeats
        if not fill:
            return order
        in_turn = np.random.default_rng((self.seed, 0, 1)).permutation(self.length)
        second = in_turn[(epoch * fill + np.arange(fill)) % self.length]
        # The last batch: the last of the other samples, so that it has none twice.
        last = np.flatnonzero(~np.isin(order, second))[-(self.batch - fill) :]
        return np.concatenate([np.delete(order, last), rng.permutation(np.concatenate([order[last], second]))])


class BalancedOrder(Order):
    """An order in which every class has equally many positions, whatever its number of samples.

    Of M positions for labeled samples of K classes, each class has ⌊M/K⌋ or ⌈M/K⌉ in each epoch. The samples of a class
    take turns: it is passed through in a new random order again and again, across epochs, so two of its samples differ
    by at most one in how often they were drawn. A sample of a small class comes several times in an epoch, each time
    with another id and augmentation (:meth:`copies`). A sample without a label comes once in an epoch. An epoch has
    as many positions as that of :class:`Order`, in whole batches.

    An epoch follows from (labels, batch, seed, epoch) alone, so resuming and ranks are exact, as in :class:`Order`.

    Args:
        labels: [length] class indices, ``UNLABELED`` where a sample has none.
        seed: of the order.
        batch: samples in a batch over all ranks.

    Raises:
        DataError: no sample has a label.
    """

    def __init__(self, labels: np.ndarray, seed: int, batch: int = 1):
        super().__init__(len(labels), seed, batch)
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels[labels != UNLABELED])]
        self._unlabeled = np.flatnonzero(labels == UNLABELED)
        if not self._members:
            raise DataError("data.sampler: balanced needs labels, and no training sample has one")
        self._key = seed
        self.identity = {"sampler": "balanced"}

    @property
    def most_repeats(self) -> int:
        return self.positions - len(self._unlabeled) - 1

    def _arranged(self, epoch: int) -> np.ndarray:
        each, rest = divmod(self.positions - len(self._unlabeled), len(self._members))
        drawn = [self._unlabeled]
        for number, members in enumerate(self._members):
            # The classes take turns at the positions that remain: those of all epochs, one after the other.
            before, after = (-((number - turns * rest) // len(self._members)) for turns in (epoch, epoch + 1))
            drawn.append(self._turns(number, members, epoch * each + before, (epoch + 1) * each + after))
        return np.random.default_rng((self._key, epoch)).permutation(np.concatenate(drawn))

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


class PickedOrder(Order):
    """Given samples, in every epoch.

    Args:
        samples: int64 [M], their indices.
        copies: int64 [M], the number of each as a copy of its sample, 0 for the first.
    """

    def __init__(self, samples: np.ndarray, copies: np.ndarray):
        super().__init__(len(samples), None)
        self._picked = samples, copies

    def _of(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return self._picked


class Repeats:
    """The ids of the samples that come again in an epoch, for the teacher's cache.

    Args:
        order: of the training.
        keys: int64 [N], ids of its samples.
    """

    def __init__(self, order: Order, keys: np.ndarray):
        self._order, self._keys = order, keys
        self.positions = order.positions
        """Positions of an epoch."""
        self.most = order.most_repeats
        """Largest number of them in an epoch."""
        self._latest: tuple[int, np.ndarray] | None = None

    def __call__(self, epoch: int) -> np.ndarray:
        """int64 [R], sorted."""
        if self._latest is None or self._latest[0] != epoch:
            samples, copies = self._order(epoch), self._order.copies(epoch)
            again = copies > 0
            self._latest = epoch, np.sort(copy_key(self._keys[samples[again]], copies[again]))
        return self._latest[1]


def _copies(order: np.ndarray) -> np.ndarray:
    """int64 [M]: for each position, the number of earlier ones with the same sample."""
    by_sample = order.argsort(kind="stable")
    grouped = order[by_sample]
    starts = np.flatnonzero(np.append(True, grouped[1:] != grouped[:-1])) if len(order) else np.empty(0, np.int64)
    copies = np.empty(len(order), np.int64)
    copies[by_sample] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return copies


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
