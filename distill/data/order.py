"""The order of samples in an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from augment.draws import copy_key


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
