"""A cache of a frozen network's outputs in main memory, keyed by the content of the views.

Views need not be declared to repeat: those that do are found, others fill the memory up to its limit. A network in eval
mode computes each sample independently, so a batch may combine cached and new samples; kernels that are selected by
batch size may round differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class FeatureCache:
    """Holds up to ``capacity`` bytes; outputs that no longer fit are computed every time."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.used = self.asked = self.hits = 0
        self._rows: dict[tuple[Any, ...], tuple[Tensor, ...]] = {}
        # Not as a decorator: that imports torch._dynamo, 5 CPU seconds for every config that names a delta.
        self._outside_of_graphs = torch.compiler.disable(self._look_up)

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureCache:
        return FeatureCache(self.capacity)  # a copy of the network may change, and the rows may be large

    @property
    def hit_rate(self) -> float:
        return self.hits / max(1, self.asked)

    def __call__(self, x: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """``compute(x)``, computed only for the samples of ``x`` [B, ...] that are not in the cache."""
        return self._outside_of_graphs(x, compute)

    def _look_up(self, x: Tensor, compute: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        keys = digests(x)
        rows = {key: self._rows[key] for key in keys if key in self._rows}
        self.asked += len(keys)
        self.hits += sum(key in rows for key in keys)
        new = [index for index, key in enumerate(keys) if key not in rows]
        if new:
            for index, *row in zip(new, *compute(x[new])):
                rows[keys[index]] = tuple(row)
                size = sum(part.numel() * part.element_size() for part in row)
                if self.used + size <= self.capacity and keys[index] not in self._rows:
                    self._rows[keys[index]] = tuple(part.to("cpu", copy=True) for part in row)
                    self.used += size
        return tuple(
            torch.stack([part.to(x.device, non_blocking=True) for part in parts])
            for parts in zip(*(rows[key] for key in keys))
        )


def digests(x: Tensor) -> list[tuple[Any, ...]]:
    """A key per sample: 128 bits of its content, its shape, and the dtype in use. Synchronizes with the device."""
    bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
    generator = torch.Generator().manual_seed(0x1ADDE2)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1], 2), generator=generator).to(x.device) * 2 + 1
    sums = torch.stack([(bits * factors[:, half]).sum(1) for half in range(2)], 1)
    kind = x.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    return [(precision, *x.shape[1:], *row) for row in sums.tolist()]
