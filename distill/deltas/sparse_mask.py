"""Sparse with a learned mask: ``W' = W + z ⊙ U`` in training, afterwards a ``sparse`` delta of what is not zero.

U has W's shape and starts at zero. The mask z is learned together with it:

- ``mask: l0``, hard concrete gates with location ``log_alpha`` of W's shape, starting at 0. In training mode
  ``s = sigmoid((log u − log(1−u) + log_alpha) / β)`` with u uniform, ``z = clamp(s · (ζ − γ) + γ, 0, 1)``; in eval mode
  ``z = clamp(sigmoid(log_alpha) · (ζ − γ) + γ, 0, 1)``; β 2/3, γ −0.1, ζ 1.1. Penalty: ``cost`` times the expected
  number of open gates, ``Σ sigmoid(log_alpha − β log(−γ/ζ))``. Louizos et al., arXiv 1712.01312.
- ``mask: l1``, soft thresholding: ``z ⊙ U = sign(U) · max(|U| − threshold, 0)``, the gradient handed to U as if there
  were no threshold, so that entries can come and go. Penalty: ``cost · Σ|U|``. Kusupati et al., arXiv 2002.03231, with
  a fixed threshold.

While training it holds as many numbers as the layer, or twice as many; how many remain depends on the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.base import DeltaSettings, Start, WeightDelta
from distill.deltas.dense import Dense
from distill.deltas.sparse import Sparse

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1


def hard_concrete(log_alpha: Tensor, noise: Tensor | None) -> Tensor:
    """The gates in [0, 1]: random with uniform ``noise`` in (0, 1), what is kept in the end without."""
    logit = log_alpha if noise is None else (torch.logit(noise) + log_alpha) / _BETA
    return (torch.sigmoid(logit) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


def expected_open(log_alpha: Tensor) -> Tensor:
    """The expected number of gates that are not zero."""
    return torch.sigmoid(log_alpha - _BETA * math.log(-_GAMMA / _ZETA)).sum()


def soft_threshold(U: Tensor, threshold: float) -> Tensor:
    """``sign(U) · max(|U| − threshold, 0)``, with the gradient of U itself."""
    return U + (torch.nn.functional.softshrink(U, threshold) - U).detach()


class SparseMask(WeightDelta):
    """``W' = W + z ⊙ U``."""

    class Settings(DeltaSettings):
        type: Literal["sparse_mask"] = "sparse_mask"
        mask: Literal["l0", "l1"] = Field("l0", description="how entries are chosen: gates, or a threshold")
        cost: float = Field(1e-6, ge=0, description="what one open gate (l0), or a size of 1 (l1), adds to the loss")
        threshold: float = Field(1e-3, gt=0, description="for l1: smaller changes of a weight are none")

    settings: Settings
    no_weight_decay = frozenset({"log_alpha"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.U = nn.Parameter(torch.zeros_like(weight))
        self.log_alpha = nn.Parameter(torch.zeros_like(weight)) if settings.mask == "l0" else None

    def change(self) -> Tensor:
        """``z ⊙ U``: another one at every call in training mode of ``mask: l0``."""
        if self.log_alpha is None:
            return soft_threshold(self.U, self.settings.threshold)
        noise = None
        if self.training:
            tiny = torch.finfo(self.U.dtype).eps
            noise = torch.rand_like(self.log_alpha).clamp(tiny, 1 - tiny)
        return self.U * hard_concrete(self.log_alpha, noise)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.change()

    def penalty(self) -> Tensor | None:
        if not self.settings.cost:
            return None
        return self.settings.cost * (self.U.abs().sum() if self.log_alpha is None else expected_open(self.log_alpha))

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> Start:
        """A sparse delta where entries are left, a dense one where that is smaller, none where nothing is left."""
        specs: list[DeltaSettings] = []
        tensors: dict[str, dict[str, Tensor]] = {}
        for site, delta in deltas.items():
            delta.eval()
            change = delta.change().detach()
            index = change.flatten().nonzero().flatten()
            if 2 * len(index) >= change.numel():
                specs.append(Dense.Settings(sites=(site,)))
                tensors[site] = {"D": change}
            elif len(index):
                specs.append(Sparse.Settings(sites=(site,), entries=len(index)))
                tensors[site] = {"index": index.int(), "values": change.flatten()[index]}
        return Start(specs, tensors)
