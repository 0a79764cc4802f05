"""Divides samples by the hash of their ids: which are held out, and which labels are visible.

No random generator is used. The hash depends on the id alone, so it is the same on every machine and for every
training seed, and hyper-parameters are chosen on the same held-out samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np

from augment.draws import sample_key
from distill.data.base import UNLABELED, DataError, Sample, Samples


def uniform(id: str, salt: str) -> float:
    """A number in [0, 1), a function of id and salt."""
    return int.from_bytes(sha256(f"{salt}/{id}".encode()).digest()[:8], "big") / 2**64


def by_hash(indices: Iterable[int], ids: Sequence[str], salt: str) -> list[int]:
    """Indices sorted by the hash of their ids.

    Args:
        indices: into ``ids``.
        ids: sample ids.
        salt: each salt gives an independent order.

    Returns:
        The indices, in that order.
    """
    return sorted(map(int, indices), key=lambda index: (uniform(ids[index], salt), ids[index]))


def held_out(ids: Sequence[str], labels: np.ndarray, fraction: float) -> np.ndarray:
    """Selects the samples to hold out: ``fraction`` of all, rounded to whole samples, stratified by class.

    The numbers of the classes are those of :func:`apportion`. Within a class, the samples with the lowest hashes are
    held out. A new sample therefore moves at most one other sample of its class, and at most one of another class.

    Args:
        ids: N sample ids.
        labels: [N] class indices; the samples without a label count as one class.
        fraction: of all samples, in [0, 1).

    Returns:
        bool [N], true for a sample that is held out.
    """
    mask = np.zeros(len(ids), dtype=bool)
    classes, sizes = np.unique(labels, return_counts=True)
    for label, count in zip(classes, apportion(sizes.tolist(), fraction)):
        members = by_hash(np.flatnonzero(labels == label), ids, salt="held-out")
        mask[members[:count]] = True
    return mask


def apportion(sizes: Sequence[int], fraction: float, spare: Sequence[int] | None = None) -> list[int]:
    """Number of samples of each class that make up a fraction of all, by the method of the largest remainder.

    Their sum is ``fraction`` of the sum of ``sizes``, rounded; each number is ``fraction`` of its class, rounded up or
    down, those with the largest remainder up (of equal ones, the first). At least one sample of a class is left, which
    may make the sum smaller.

    Args:
        sizes: number of samples of each class.
        fraction: in [0, 1).
        spare: samples of each class that can be given; default: all but one.

    Returns:
        A number for each class.
    """
    spare = [size - 1 for size in sizes] if spare is None else spare
    exact = [fraction * size for size in sizes]
    counts = [min(int(share + 1e-9), most) for share, most in zip(exact, spare)]
    missing = int(fraction * sum(sizes) + 0.5) - sum(counts)
    for index in sorted(range(len(sizes)), key=lambda index: counts[index] - exact[index]):
        if missing > 0 and counts[index] < spare[index] and counts[index] < exact[index]:
            counts[index] += 1
            missing -= 1
    return counts


def label_budget(ids: Sequence[str], labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Hides all but ``per_class`` labels of each class.

    With the same seed, the labels that are visible at 5 per class are also visible at 10. A class with fewer samples
    keeps all labels.

    Args:
        ids: N sample ids.
        labels: int64 [N] class indices, ``UNLABELED`` where a sample has none.
        per_class: number of labels to keep in each class.
        seed: selects the samples; independent of the training seed.

    Returns:
        int64 [N], ``UNLABELED`` where a label is hidden.
    """
    shown = np.full_like(labels, UNLABELED)
    for label in np.unique(labels[labels != UNLABELED]):
        members = by_hash(np.flatnonzero(labels == label), ids, salt=f"label-seed-{seed}")[:per_class]
        shown[members] = label
    return shown


class Subset:
    """Some samples of a split, with the labels that are visible in training.

    Args:
        samples: the whole split.
        indices: int64 [M] into ``samples``.
        labels: int64 [M] class indices, ``UNLABELED`` where a label is absent or hidden.
    """

    def __init__(self, samples: Samples, indices: np.ndarray, labels: np.ndarray):
        self.samples, self.indices, self.labels = samples, indices, labels

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[int(self.indices[index])]._replace(label=int(self.labels[index]))

    @cached_property
    def ids(self) -> list[str]:
        """Ids of the samples [M]."""
        ids = self.samples.ids
        return [ids[index] for index in self.indices]

    @cached_property
    def keys(self) -> np.ndarray:
        """int64 [M], :func:`augment.draws.sample_key` of the ids."""
        return np.fromiter(map(sample_key, self.ids), np.int64, len(self))

    def where(self, mask: np.ndarray) -> Subset:
        """The samples for which ``mask``, bool [M], is true."""
        return Subset(self.samples, self.indices[mask], self.labels[mask])


def full_split(samples: Samples, classes: Sequence[str], name: str) -> Subset:
    """All samples of a split, after checks of their ids and labels.

    Args:
        samples: of the split.
        classes: class names; labels are indices into them.
        name: of the split, for errors.

    Returns:
        All samples, with their labels.

    Raises:
        DataError: there are none, two have the same id, or a label is neither a class index nor ``UNLABELED``.
    """
    ids, labels = samples.ids, np.asarray(samples.labels, dtype=np.int64)
    if not len(ids):
        raise DataError(f"the {name} split has no images")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(id for id in ids if id in seen or seen.add(id))  # type: ignore[func-returns-value]
        raise DataError(f"two samples of the {name} split have the id {twice!r}")
    wrong = np.flatnonzero((labels != UNLABELED) & ((labels < 0) | (labels >= len(classes))))
    if len(wrong):
        raise DataError(
            f"{ids[wrong[0]]}: label {labels[wrong[0]]} is out of range: the source has {len(classes)} classes"
            + (f" (and {len(wrong) - 1} more in the {name} split)" if len(wrong) > 1 else "")
        )
    return Subset(samples, np.arange(len(ids)), labels)
