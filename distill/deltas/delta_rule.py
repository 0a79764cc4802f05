"""The delta rule on a weight: replaces the component of W along a direction k by a vector v, with step size β.

``W ← W + β k (vᵀ − kᵀ W)`` with ‖k‖ = 1, repeated ``rank`` times. β = 0 changes nothing, β = 1 projects
(``kᵀ W' = vᵀ`` exactly), β = 2 with v = 0 reflects. This is the static form of Deep Delta Learning.

Shapes: W [out, n], n = in/g · kh · kw, group by group; k [g, rank, out/g] (stored unnormalized), v [g, rank, n],
β [g, rank]. k is initialized at random, v and β to zero: W is unchanged before training, and β alone has a
gradient at first.

All steps together add ``B A``: B = (β_i k_i), and the rows a_i = v_i − W_iᵀ k_i solve a triangular system, since
``k_iᵀ W_i = k_iᵀ W + Σ_{j<i} (k_iᵀ k_j) β_j a_j``. So the output is computed as for ``low_rank``, see ``projected``.

Weight decay acts on β alone, towards the unchanged weight: the length of k has no effect, and v = 0 would remove the
component along k.

Paper: arXiv 2601.00417; there on activations, block by block.

Deviation: β is unbounded; in the paper it is in [0, 2].
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.activation import ActivationForm
from distill.deltas.base import frozen_weight
from distill.deltas.projected import plus_product, projected
from distill.deltas.rank_settings import RankedSettings
from distill.deltas.ranked import RankedDelta


def delta_rule_factors(weight: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of all steps together: the steps add ``B A`` to the weight, per group.

    Args:
        weight: W [g, m, n], per group.
        k: directions [g, r, m], normalized here.
        v: new components [g, r, n].
        beta: step sizes [g, r].

    Returns:
        A [g, r, n] and B [g, m, r].
    """
    k = F.normalize(k, dim=2)
    steps = torch.tril((k @ k.mT) * beta[:, None, :], diagonal=-1)
    A = torch.linalg.solve_triangular(steps, v - k @ weight, upper=False, unitriangular=True)
    return A, (k * beta[:, :, None]).mT


class DeltaRule(RankedDelta):
    """``W ← W + β k (vᵀ − kᵀ W)``, rank by rank.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.delta_rule import DeltaRule
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [DeltaRule.Settings(rank=2)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'k': [1, 2, 16], 'v': [1, 2, 32], 'beta': [1, 2]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(RankedSettings):
        type: Literal["delta_rule"] = "delta_rule"

    settings: Settings
    no_weight_decay = frozenset({"k", "v"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.groups: int = getattr(layer, "groups", 1)
        rows, rank = weight.shape[0] // self.groups, settings.rank
        self.k = nn.Parameter(weight.new_empty(self.groups, rank, rows).normal_(std=1 / math.sqrt(rows)))
        self.v = nn.Parameter(weight.new_zeros(self.groups, rank, weight[0].numel()))
        self.beta = nn.Parameter(weight.new_zeros(self.groups, rank))

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        U, S, Vh = torch.linalg.svd(cls.change(layer, free), full_matrices=False)
        k = U[..., :rank].mT  # orthogonal, so the steps do not interact
        groups: int = getattr(layer, "groups", 1)
        v = k @ _blocks(layer.weight, groups) + S[:, :rank, None] * Vh[:, :rank]  # type: ignore[arg-type]
        return {"k": k.contiguous(), "v": v, "beta": torch.ones_like(S[:, :rank])}

    def factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return delta_rule_factors(_blocks(weight, self.groups), self.k, self.v, self.beta)

    def forward(self, weight: Tensor) -> Tensor:
        A, B = self.factors(weight)
        return plus_product(weight, A, B)

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        A, B = self.factors(weight)
        return form.plus(A, B)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        weight = frozen_weight(layer)
        with torch.autocast(x.device.type, enabled=False):
            A, B = self.factors(weight)
        return projected(layer, x, weight, layer.bias, A, B)  # type: ignore[arg-type]


def _blocks(weight: Tensor, groups: int) -> Tensor:
    """[out, in/g, kh, kw] → [g, out/g, in/g · kh · kw]."""
    return weight.reshape(groups, weight.shape[0] // groups, -1)
