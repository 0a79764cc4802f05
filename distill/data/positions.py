"""Position of a sample in the training split: its row in a memory bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from augment.draws import sample_key


class Positions:
    """Finds the position of each sample by its id, without a loop over the batch.

    Args:
        ids: names of the training samples, in order.
    """

    def __init__(self, ids: Sequence[str]):
        self._keys, self._positions = torch.tensor([sample_key(id) for id in ids]).sort()

    def __call__(self, ids: Tensor) -> Tensor:
        """[B] int64 ids on the CPU, as batches carry them → [B] int64 positions.

        Raises:
            ValueError: an id is not in the split.
        """
        at = torch.searchsorted(self._keys, ids).clamp(max=len(self._keys) - 1)
        if not torch.equal(self._keys[at], ids):
            strange = ids[self._keys[at] != ids]
            raise ValueError(f"{len(strange)} of {len(ids)} samples are not in the training split, e.g. {strange[0]}")
        return self._positions[at]
