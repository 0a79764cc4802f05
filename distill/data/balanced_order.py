"""The order of ``data.sampler: balanced``: every class equally often."""

from __future__ import annotations

import numpy as np

from distill.data.base import UNLABELED, DataError
from distill.data.order import Order


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
