"""The 1,797 handwritten digits that scikit-learn contains: real data without a download.

Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998; 8×8 pixels, gray 0…16 → 0…255.

The split is fixed and stratified: within each class, in the order of the SHA-256 of the id, the first fifth is test,
the next tenth validation, the rest training. No seed changes it, so results of different runs can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from distill.data.base import Sample, Samples, Source, Split
from distill.data.split import by_hash

TEST_SHARE, VAL_SHARE = 0.2, 0.1


class Digits(Source):
    """The digits, with ids ``digits/0000`` … ``digits/1796`` in scikit-learn's order."""

    class Settings(Source.Settings):
        type: Literal["digits"] = "digits"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.has_split = frozenset({"train", "val", "test"})
        self.classes = tuple("0123456789")
        from sklearn.datasets import load_digits

        bunch = load_digits()
        self._images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        self._labels = bunch.target.astype(np.int64)
        self._ids = [f"digits/{index:04d}" for index in range(len(self._labels))]

    def split(self, name: Split) -> Samples:
        chosen: list[int] = []
        for label in range(10):
            members = by_hash(np.flatnonzero(self._labels == label), self._ids, salt="digits")
            test = round(TEST_SHARE * len(members))
            val = test + round(VAL_SHARE * len(members))
            chosen += {"test": members[:test], "val": members[test:val], "train": members[val:]}[name]
        chosen.sort()
        images = np.repeat(self._images[chosen][..., None], self.channels, axis=3)
        return _DigitSamples(images, self._labels[chosen].tolist(), [self._ids[i] for i in chosen])


class _DigitSamples:
    def __init__(self, images: np.ndarray, labels: Sequence[int], ids: Sequence[str]):
        self.images, self.labels, self.ids = images, labels, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.images[index], self.labels[index], self.ids[index])
