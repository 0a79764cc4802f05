"""The sums of several heads: those that read the same features share theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from distill.continual.heads.base import Head
from distill.continual.heads.sums import Sums


class HeadSums:
    """Sums of the features of all images so far, once for each kind of features that the heads read.

    Args:
        heads: that will be fitted.
        width: D, of the network's features.

    ``ncm``, ``slda`` and ``ridge`` read the same sums.
    """

    def __init__(self, heads: Sequence[Head], width: int):
        self._mapping: dict[str, Head] = {}
        self._sums: dict[str, Sums] = {}
        for head in sorted(heads, key=lambda head: head.sums_moments == "none"):  # those with second moments first
            if head.sums_key not in self._sums:
                self._mapping[head.sums_key] = head
                self._sums[head.sums_key] = head.new_sums(width)

    def add(self, features_ND: Tensor, labels_N: Tensor, names: Sequence[str]) -> None:
        """Add images to all sums.

        Args:
            features_ND: as the network gives them.
            labels_N: int64 indices into ``names``; negative: no label, and the image is left out.
            names: of the classes that the labels count.
        """
        for key, head in self._mapping.items():
            head.update(self._sums[key], features_ND, labels_N, names)

    def of(self, head: Head) -> Sums:
        """The sums that a head reads; ``head.fit(sums.of(head))``."""
        return self._sums[head.sums_key]

    @property
    def kept_bytes(self) -> int:
        """Bytes that are kept from task to task."""
        return sum(sums.kept_bytes for sums in self._sums.values())

    def save(self, folder: Path) -> None:
        """Write one file for each kind of features."""
        for key, sums in self._sums.items():
            sums.save(folder / _file(key))

    def load(self, folder: Path) -> None:
        """Replace all sums by those that were saved for the same heads.

        Raises:
            ContinualError: a file is missing or cannot be read, or is of other features.
        """
        for key, sums in self._sums.items():
            loaded = Sums.load(folder / _file(key))
            loaded.require_like(sums, folder / _file(key))
            self._sums[key] = loaded


def _file(key: str) -> str:
    return f"sums-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors"
