"""Position of a sample in the training split: its row in a memory bank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from augment.draws import copy_key, copy_of, sample_key

FEW_COPIES = 64
"""So many copies of a sample are tried one by one; more are rare, and are computed from all keys."""


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
        positions, _ = self.locate(ids)
        strange = ids[positions < 0]
        if len(strange):
            raise ValueError(f"{len(strange)} of {len(ids)} samples are not in the training split, e.g. {strange[0]}")
        return positions

    def locate(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions, and how often each sample came before in the epoch (see :func:`augment.draws.copy_key`).

        Args:
            ids: [B] int64 on the CPU.

        Returns:
            Two tensors [B] int64; −1 and 0 for an id that is not in the split.
        """
        positions, copies = torch.full_like(ids, -1), torch.zeros_like(ids)
        missing = torch.arange(len(ids))
        for copy in range(FEW_COPIES):
            keys = copy_key(ids[missing], torch.tensor(-copy))
            at = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
            known = self._keys[at] == keys
            positions[missing[known]], copies[missing[known]] = self._positions[at[known]], copy
            missing = missing[~known]
            if not len(missing):
                return positions, copies
        for row in missing.tolist():
            number, place = copy_of(self._keys, ids[row]).min(0)
            if number < 2**32:  # the other keys give random numbers of 63 bits
                positions[row], copies[row] = self._positions[place], number
        return positions, copies
