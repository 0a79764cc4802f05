"""DoRA: a low-rank change of each output row's direction, and a learned length for each row.

``W' = m · V / ‖V‖`` by rows, ``V = W + (alpha / rank) · B A``. Shapes as for ``low_rank``; m [out].

The length is stored relative to the length of W's row, ``m = (1 + magnitude) · ‖W‖``: with ``magnitude`` and B zero, W'
is exactly W. The gradient through ‖V‖ is computed (the paper also describes a variant without it; here it costs little,
since it is computed from A and B). A row of zeros stays zero.

The factor 1 + magnitude is at least 2⁻¹⁰ in absolute value.

Computation: ``W' = diag(f) W + diag(f) B A`` with one factor f for each row, see ``projected``; no second output is
kept.

Paper: Liu et al., arXiv 2402.09353.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaTensors, frozen_weight
from distill.deltas.ia3 import scale_rows
from distill.deltas.low_rank import LowRank
from distill.deltas.projected import factor, projected


def row_lengths(weight: Tensor) -> Tensor:
    """[out], ‖W_o‖ of every row, at least the smallest normal number."""
    return torch.linalg.vector_norm(weight.flatten(1), dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


def changed_lengths(weight: Tensor, lengths: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """‖V‖ of every row of ``V = W + B A`` without forming V: ``‖V‖² = ‖W‖² + 2 B·(W Aᵀ) + B (A Aᵀ) Bᵀ``.

    Args:
        weight: W [out, in/g, kh, kw] or [out, in].
        lengths: ‖W‖ of every row [out].
        A: [g, rank, n], n = in/g · kh · kw.
        B: [g, out/g, rank], scaled.

    Returns:
        [out].
    """
    blocks = weight.reshape(B.shape[0], B.shape[1], -1)
    square = lengths.square() + (B * (2 * (blocks @ A.mT) + B @ (A @ A.mT))).sum(2).flatten()
    # Rounding may give a negative value where W and B A cancel.
    return square.clamp(min=torch.finfo(weight.dtype).tiny).sqrt()


class DoRA(LowRank):
    """``W' = (1 + magnitude) · ‖W‖ · V / ‖V‖``, ``V = W + (alpha / rank) B A``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.dora import DoRA
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [DoRA.Settings(rank=2)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'A': [1, 2, 32], 'B': [1, 16, 2], 'magnitude': [16]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(LowRank.Settings):
        type: Literal["dora"] = "dora"  # type: ignore[assignment]

    additive = False
    proportional_to = frozenset()
    no_weight_decay = frozenset({"magnitude"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.magnitude = nn.Parameter(weight.new_zeros(weight.shape[0]))

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        magnitude = row_lengths(free) / row_lengths(weight) - 1
        return {**super().cut(layer, free, rank), "magnitude": magnitude}

    @classmethod
    def summed(cls, parts: Sequence[DeltaTensors]) -> DeltaTensors | None:
        return None  # lengths multiply

    def factors(self, lengths: Tensor, changed: Tensor) -> Tensor:
        """[out], the factors of V's rows, ``(1 + magnitude) · ‖W‖ / ‖V‖``, from ``lengths`` ‖W‖ and ``changed`` ‖V‖."""
        return factor(self.magnitude) * (lengths / changed)

    def forward(self, weight: Tensor) -> Tensor:
        direction = super().forward(weight)
        return scale_rows(direction, self.factors(row_lengths(weight), row_lengths(direction)))

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        direction = super().forward(weight)
        factors = self.factors(row_lengths(weight), row_lengths(direction))
        return form.plus(self.A, self._scaled()).scale_rows(factors)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        weight, B = frozen_weight(layer), self.B * self.scale
        with torch.autocast(x.device.type, enabled=False):
            lengths = row_lengths(weight)
            factors = self.factors(lengths, changed_lengths(weight, lengths, self.A, B))
            B = B * factors.view(*B.shape[:2], 1)
        return projected(layer, x, weight, layer.bias, self.A, B, rows=factors)  # type: ignore[arg-type]
