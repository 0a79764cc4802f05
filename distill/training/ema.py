"""Exponential moving average of the trained weights, which replaces them in evaluation and export, or is a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """``average ← d · average + (1 − d) · weight`` after each update t.

    ``d = min(decay, (1 + t) / (10 + t))``, unless the caller of :meth:`update` chooses it.

    Only trainable parameters are averaged; the frozen backbone is not copied. Buffers (the batch-norm statistics of a
    fully trained student) keep their current values.

    Args:
        module: whose trainable parameters are averaged.
        decay: largest d, in (0, 1).
        into: a copy of the module whose parameters are the average; None: tensors that only this object holds.
    """

    def __init__(self, module: nn.Module, decay: float, into: nn.Module | None = None):
        self.decay = decay
        self.updates = 0
        self._weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._weights.items()}
        if into is not None:
            of_copy = dict(into.named_parameters())
            self.average = {name: of_copy[name] for name in self._weights}

    def to(self, device: torch.device) -> None:
        """Move the average to the module's device."""
        self.average = {name: average.to(device) for name, average in self.average.items()}

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Add the current weights to the average, with the weight 1 − decay; call it after each update."""
        self.updates += 1
        if decay is None:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.average.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the module's weights are the average; afterwards they are its own again."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self.average[name])
            self.average[name].copy_(kept)

    def apply(self) -> None:
        """Replace the module's weights by the average."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self.average[name])

    def state(self) -> dict[str, Tensor | int]:
        return {"updates": self.updates, **self.average}

    def load(self, state: dict[str, Tensor | int]) -> None:
        self.updates = int(state["updates"])
        for name, average in self.average.items():
            average.copy_(state[name])  # type: ignore[arg-type]
