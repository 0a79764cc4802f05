"""Two domains in one training: a labeled source, and a target whose labels are hidden.

A batch is half source and half target, see :class:`DomainOrder`. Ids of the target's samples begin with ``target/``, so
that views, draws and caches of the two domains never meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.data.base import UNLABELED, DataError, Sample, Samples, Source, Split, source_at
from distill.data.order import Order

PREFIX = "target/"
"""What the ids of the target domain's samples begin with."""
SOURCE, TARGET = 0, 1
"""Domains of samples in a batch."""


class TargetDomain(Source):
    """Another source as the target domain: its own ids with a prefix, labels as classes of the source domain.

    Of its training split no label is read, unless ``labeled``. Its validation split is not used. Classes are matched by
    name; a class that the source domain lacks is an error where an image of the test split has it.

    Args:
        inner: the source of the target's images.
        classes: of the source domain; empty: they have no names, and no image has a label.
        labeled: whether training labels are visible, for a control.
        key: of the source in the config, for errors.

    Raises:
        DataError: (from ``split``) an image of the target has a class that the source domain lacks.
    """

    def __init__(self, inner: Source, classes: Sequence[str], labeled: bool = False, key: str = "data.target"):
        super().__init__(inner.settings)
        self.inner, self.classes, self.labeled, self.key = inner, tuple(classes), labeled, key
        self.channels, self.depth = inner.channels, inner.depth
        self.has_split = inner.has_split - {"val"}
        self.reading, self.skipped = inner.reading, inner.skipped

    def split(self, name: Split) -> Samples:
        with source_at(self.key):
            samples = self.inner.split(name)
        if not self.classes or (name == "train" and not self.labeled):
            return TargetSamples(samples, [UNLABELED] * len(samples))
        number = {own: index for index, own in enumerate(self.classes)}
        names = self.inner.classes
        own = [label if label == UNLABELED else number.get(names[label], -2) for label in samples.labels]
        if -2 in own:
            place = own.index(-2)
            raise DataError(
                f"{self.key}: {samples.ids[place]} of its {name} split is of the class "
                f"{names[samples.labels[place]]!r}, which the source domain does not have; its classes are "
                f"{', '.join(self.classes) or 'none'}"
            )
        return TargetSamples(samples, own)

    def column(self, split: Split, name: str) -> Sequence[str]:
        return self.inner.column(split, name)


class TargetSamples:
    """A split of the target domain.

    Args:
        samples: of the inner source.
        labels: the same number, as classes of the source domain or ``UNLABELED``.
    """

    def __init__(self, samples: Samples, labels: Sequence[int]):
        self.samples, self.labels = samples, list(labels)
        self.ids = [PREFIX + id for id in samples.ids]
        self.sizes: Sequence[int] = getattr(samples, "sizes", ())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.samples[index].image, self.labels[index], self.ids[index])


class DomainOrder(Order):
    """Source and target samples in turn: the first, third, … position of a batch is a source sample.

    So each rank's part of a batch has as many of both. An epoch has enough batches for the larger domain; the other one
    is passed through several times. Each domain has a sequence of random orders, one for each pass, that goes on from
    epoch to epoch: two samples of a domain differ by at most one in how often they were drawn.

    An epoch follows from (numbers of samples, batch, seed, epoch) alone, so resuming and ranks are exact.

    Args:
        source: order of one pass through the source samples, without repetition.
        target: number of target samples, which come after those of the source.
        seed: of the order.
        batch: samples in a batch over all ranks.
        world: number of ranks.

    Raises:
        DataError: a rank's part of a batch cannot be half and half.
    """

    def __init__(self, source: Order, target: int, seed: int, batch: int, world: int = 1):
        if batch % (2 * world):
            ranks = f" for each of {world} ranks" if world > 1 else ""
            raise DataError(f"data.batch_size {batch}: half of a batch{ranks} is of the target domain")
        self.half = batch // 2
        self.batches = -(-max(source.positions, target) // self.half)
        super().__init__(self.batches * batch, seed, batch)
        # Another seed, since two domains of equal size would otherwise be in the same order.
        self._passes = source, Order(target, seed + 2**31)
        self._first_target = source.length
        self.identity = {"target": target, **source.identity}

    @property
    def most_repeats(self) -> int:
        return self.positions - 2

    def _arranged(self, epoch: int) -> np.ndarray:
        drawn = self.batches * self.half
        source, target = (_drawn(order, epoch * drawn, (epoch + 1) * drawn) for order in self._passes)
        return np.stack([source, self._first_target + target], axis=1).reshape(-1)


def _drawn(order: Order, first: int, stop: int) -> np.ndarray:
    """Draws ``first`` to ``stop`` of the sequence of an order's epochs."""
    size = order.positions
    passes = range(first // size, (stop - 1) // size + 1)
    return np.concatenate([order(number) for number in passes])[
        first - passes.start * size : stop - passes.start * size
    ]
