"""HALRP: rescale the weight's rows and columns, and add a low-rank matrix: ``W' = R W S + B``, ``B = K2 K1``.

For convs B is constant over the window: ``W'[o, i, :, :] = R_o W[o, i, :, :] S_i + (K2 K1)[o, i]``, group by group.

Shapes: W [out, in/g, kh, kw], R [out], S [in], K1 [g, rank, in/g], K2 [g, out/g, rank]. R and S are stored as offsets
from 1, initialized to zero; factors are at least 2⁻¹⁰ in absolute value. K1 is initialized Kaiming uniform, K2 to zero.
If ranks are chosen from the data (``ranks``), the initial values are closed forms of Wf, the weight after a warm-up in
which all weights are trained, as in the paper:

- ``R_j = ⟨Wf_j, W_j⟩ / ‖W_j‖²`` for every row, then ``S_i = ⟨(R W)_i, Wf_i⟩ / ‖(R W)_i‖²`` for every column;
- ``E = Wf − R W S``, averaged over the window, ``E ≈ U Σ Vᵀ``, ``K1 = √Σ Vᵀ``, ``K2 = U √Σ``.

After training, entries of K1 and K2 whose absolute value is at most ``max(1e-5, t)`` are set to zero, and a rank whose
row of K1 or column of K2 is zero is removed. t is the smallest value for which R, S and the remaining entries of K1 and
K2 number at most ``max_growth`` times the entries of the layers' weights; without ``max_growth`` it is 0.

Computation: the gradients of R and S come from the layer's input and output, see ``projected``. For the first layer,
whose input has no gradient, the gradient of the full weight is computed.

Penalty: ``l1 · (Σ|K1| + Σ|K2|) + l2/2 · (‖R‖² + ‖S‖² + ‖K1‖² + ‖K2‖²)``; the optimizer's weight decay does not
apply to them.

Deviation: R and S are regularized towards 1 instead of 0, so that the penalty favors the backbone's weights.

Paper: arXiv 2311.15161 (l1 there 1e-6 … 1e-4, l2 1e-4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaError, DeltaInit, DeltaSettings, frozen_weight
from distill.deltas.ia3 import scale_columns, scale_rows
from distill.deltas.projected import factor, projected
from distill.deltas.rank_settings import RankedSettings
from distill.deltas.ranked import RankedDelta, by_rank, factors


def closed_form(weight: Tensor, free: Tensor, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Least-squares factors of W's rows, then of its columns, for ``diag(R) W diag(S) ≈ Wf``; 1 where W is zero.

    Args:
        weight: W [out, in/g, kh, kw] or [out, in].
        free: Wf, of W's shape.
        groups: g.

    Returns:
        R [out] and S [in].
    """
    rows = _best_factor(weight.flatten(1), free.flatten(1), dim=1)
    scaled = scale_rows(weight, rows)
    blocks = (groups, -1, *weight.shape[1:2], weight[0, 0].numel())
    columns = _best_factor(scaled.reshape(blocks), free.reshape(blocks), dim=(1, 3))
    return rows, columns.flatten()


def _best_factor(a: Tensor, b: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``argmin_c ‖b − c·a‖`` over ``dim``."""
    square = a.square().sum(dim)
    return torch.where(square > 0, (a * b).sum(dim) / square.clamp(min=torch.finfo(a.dtype).tiny), 1.0)


def pruning_size(entries: Tensor, allowed: int) -> float:
    """The absolute value that an entry must exceed to be kept: 1e-5, or larger so that at most ``allowed`` are kept."""
    sizes = entries.abs()
    if allowed >= len(sizes):
        return 1e-5
    return max(1e-5, float(sizes.sort(descending=True).values[max(allowed, 0)]))


class HALRP(RankedDelta):
    """``W' = (1 + R) W (1 + S) + K2 K1``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.halrp import HALRP
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [HALRP.Settings(rank=2)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'R': [16], 'S': [32], 'K1': [1, 2, 32], 'K2': [1, 16, 2]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(RankedSettings):
        type: Literal["halrp"] = "halrp"
        l1: float = Field(1e-5, ge=0, description="weight of Σ|K1| + Σ|K2| in the loss")
        l2: float = Field(1e-4, ge=0, description="weight of half the sum of all squares in the loss")
        max_growth: float | None = Field(
            None,
            gt=0,
            le=1,
            description="bound on the parameters after pruning, as a fraction of the entries of the changed weights",
        )

    settings: Settings
    least_rank = 1
    warm_starts = True
    product = ("K2", "K1")
    no_weight_decay = frozenset({"R", "S", "K1", "K2"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.groups: int = getattr(layer, "groups", 1)
        out, inner = weight.shape[:2]
        bound = 1 / math.sqrt(inner)
        self.numbers = weight.numel()
        self.R = nn.Parameter(weight.new_zeros(out))
        self.S = nn.Parameter(weight.new_zeros(inner * self.groups))
        self.K1 = nn.Parameter(weight.new_empty(self.groups, settings.rank, inner).uniform_(-bound, bound))
        self.K2 = nn.Parameter(weight.new_zeros(self.groups, out // self.groups, settings.rank))

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """Raise ``DeltaError`` if R and S, which are never pruned, exceed ``max_growth`` alone."""
        super().check(settings, layers)
        assert isinstance(settings, cls.Settings)
        weights: list[Tensor] = [layer.weight for layer in layers.values()]  # type: ignore[misc]
        numbers = sum(weight.numel() for weight in weights)
        scales = sum(
            len(weight) + weight.shape[1] * getattr(layer, "groups", 1)
            for weight, layer in zip(weights, layers.values())
        )
        if settings.max_growth is not None and scales > settings.max_growth * numbers:
            raise DeltaError(
                f"halrp: R and S alone have {scales / numbers:.2%} of the entries of the layers, more than max_growth "
                f"{settings.max_growth:.2%}; raise it, or leave small layers out"
            )

    @classmethod
    def change(cls, layer: nn.Module, free: Tensor) -> Tensor:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups: int = getattr(layer, "groups", 1)
        rows, columns = closed_form(weight, free, groups)
        E = free - scale_columns(scale_rows(weight, rows), columns, groups)
        return E.flatten(2).mean(2).view(groups, -1, E.shape[1]) if E.ndim > 2 else E[None]

    @classmethod
    def window(cls, layer: nn.Module) -> int:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        return weight[0, 0].numel()

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        rows, columns = closed_form(weight, free, getattr(layer, "groups", 1))
        K2, K1 = factors(cls.change(layer, free), rank)
        return {"R": rows - 1, "S": columns - 1, "K1": K1, "K2": K2}

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit | None:
        assert isinstance(settings, HALRP.Settings)
        if not deltas:
            return None
        entries = torch.cat([K.detach().flatten() for delta in deltas.values() for K in (delta.K1, delta.K2)])
        allowed = len(entries)
        if settings.max_growth is not None:
            bound = settings.max_growth * sum(delta.numbers for delta in deltas.values())
            allowed = int(bound) - sum(delta.R.numel() + delta.S.numel() for delta in deltas.values())
            if allowed < 0:
                raise DeltaError(
                    f"halrp: R and S alone have more than max_growth {settings.max_growth:g} of the layers' entries"
                )
        smallest = pruning_size(entries, allowed)
        ranks, tensors = {}, {}
        for site, delta in deltas.items():
            K1, K2 = (K.detach() * (K.detach().abs() > smallest) for K in (delta.K1, delta.K2))
            whole = K1.flatten(2).any(2).any(0) & K2.any(1).any(0)
            whole[0] |= not whole.any()  # no delta has rank 0, so one rank stays even if it is zero
            ranks[site] = int(whole.sum())
            tensors[site] = {"R": delta.R.detach(), "S": delta.S.detach(), "K1": K1[:, whole], "K2": K2[..., whole]}
        return DeltaInit(by_rank(settings, ranks), tensors)

    def forward(self, weight: Tensor) -> Tensor:
        scaled = scale_columns(scale_rows(weight, factor(self.R)), factor(self.S), self.groups)
        added = (self.K2 @ self.K1).view(*weight.shape[:2], *[1] * (weight.ndim - 2))
        return scaled + added

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        K1 = self.K1[..., None].expand(*self.K1.shape, weight[0, 0].numel()).flatten(2)
        return form.scale_rows(factor(self.R)).scale_columns(factor(self.S)).plus(K1, self.K2)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        weight = frozen_weight(layer)
        K1 = self.K1[..., None].expand(*self.K1.shape, weight[0, 0].numel()).flatten(2)
        R, S = factor(self.R), factor(self.S)
        return projected(layer, x, weight, layer.bias, K1, self.K2, R, S)  # type: ignore[arg-type]

    def penalty(self) -> Tensor | None:
        l1, l2 = self.settings.l1, self.settings.l2
        terms = []
        if l1:
            terms.append(l1 * (self.K1.abs().sum() + self.K2.abs().sum()))
        if l2:
            terms.append(l2 / 2 * torch.stack([p.square().sum() for p in (self.R, self.S, self.K1, self.K2)]).sum())
        return torch.stack(terms).sum() if terms else None
