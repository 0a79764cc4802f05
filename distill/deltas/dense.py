"""Dense: ``W' = W + D``, D of W's shape, initialized to zero. Smaller deltas are compared with it.

Penalty, summed over layers: ``l1 · Σ|D| + l2/2 · ΣD² + nuclear · ‖D‖_*``, D reshaped to [out, in/g · kh · kw]. All are
0 by default. The nuclear norm favors a D of low rank. It is smoothed, ``Σ_i √(σ_i² + ε²) − ε`` with ε 1e-4, so that its
gradient exists (and is zero) before training, where all singular values are equal.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.base import DeltaSettings, WeightDelta


def nuclear_norm(D: Tensor, epsilon: float = 1e-4) -> Tensor:
    """``Σ_i √(σ_i² + ε²) − ε`` over the singular values of a matrix, by the eigenvalues of its smaller Gram matrix."""
    gram = D @ D.T if D.shape[0] <= D.shape[1] else D.T @ D
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)
    return ((squares + epsilon**2).sqrt() - epsilon).sum()


class Dense(WeightDelta):
    """``W' = W + D``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.dense import Dense
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [Dense.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'D': [16, 32]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["dense"] = "dense"
        l1: float = Field(0.0, ge=0, description="weight of Σ|D| in the loss")
        l2: float = Field(0.0, ge=0, description="weight of ½ ΣD² in the loss")
        nuclear: float = Field(
            0.0,
            ge=0,
            description="weight of the sum of D's singular values in the loss; solves an eigenvalue problem "
            "per layer and step",
        )

    settings: Settings
    additive = True
    proportional_to = frozenset({"D"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.D = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.D

    def penalty(self) -> Tensor | None:
        l1, l2, nuclear = self.settings.l1, self.settings.l2, self.settings.nuclear
        terms = []
        if l1:
            terms.append(l1 * self.D.abs().sum())
        if l2:
            terms.append(l2 / 2 * self.D.square().sum())
        if nuclear:
            terms.append(nuclear * nuclear_norm(self.D.flatten(1)))
        return torch.stack(terms).sum() if terms else None
