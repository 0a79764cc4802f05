"""Low rank (LoRA): ``W' = W + (alpha / rank) · B A``.

Shapes: W [out, in/g, kh, kw] of a conv with g groups (Linear: g = 1, no window), n = in/g · kh · kw,
A [g, rank, n], B [g, out/g, rank]. Each group has its own pair A, B, so that merging is exact for grouped and
depthwise convs too. A is initialized Kaiming uniform, as the weight of a Linear, B to zero.

Deviation from LoRA for convs: the whole window is one row of A (the ``[rank, in · kh · kw]`` form), without dropout.

Computation: one convolution with the changed weight; its backward never forms the gradient of the full weight, see
``projected``.

Paper: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from augment.base import error_at
from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaTensors, frozen_weight
from distill.deltas.projected import plus_product, projected
from distill.deltas.rank_settings import RankedSettings
from distill.deltas.ranked import RankedDelta, factors


def fresh_factors(layer: nn.Module, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A [g, rank, n] with the usual initialization of a Linear, and B [g, out/g, rank] of zeros, for a layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups: int = getattr(layer, "groups", 1)
    out, inner = weight.shape[0], weight[0].numel()
    A = weight.new_empty(groups, rank, inner).uniform_(-1 / math.sqrt(inner), 1 / math.sqrt(inner))
    return nn.Parameter(A), nn.Parameter(weight.new_zeros(groups, out // groups, rank))


class LowRank(RankedDelta):
    """``W + (alpha / rank) B A``, block by block for grouped convs.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.low_rank import LowRank
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [LowRank.Settings(rank=2, alpha=4)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'A': [1, 2, 32], 'B': [1, 16, 2]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(RankedSettings):
        type: Literal["low_rank"] = "low_rank"
        alpha: float | None = Field(None, gt=0, description="the change is multiplied by alpha / rank; none: by 1")

        @model_validator(mode="after")
        def _no_scale_of_chosen_ranks(self) -> LowRank.Settings:
            if self.ranks is not None and self.alpha is not None:
                raise error_at("alpha", "alpha / rank would differ between layers of different ranks; leave alpha out")
            return self

    settings: Settings
    additive = True
    proportional_to = frozenset({"B"})
    product = ("B", "A")

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        self.scale = 1.0 if settings.alpha is None else settings.alpha / settings.rank
        self.A, self.B = fresh_factors(layer, settings.rank)

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        """``A = √Σ Vᵀ`` and ``B = U √Σ``, from the singular value decomposition of ``W_free − W``.

        Args:
            layer: before training.
            free: W_free, of the shape of the layer's weight.
            rank: of the delta.

        Returns:
            ``A`` [g, rank, n] and ``B`` [g, out/g, rank].
        """
        B, A = factors(cls.change(layer, free), rank)
        return {"A": A, "B": B}

    @classmethod
    def summed(cls, parts: Sequence[DeltaTensors]) -> DeltaTensors | None:
        """The factors of all parts, concatenated. Ranks with equal A are merged, ranks whose B is zero removed."""
        settings: Any = [part.settings for part in parts]
        scales = [1.0 if own.alpha is None else own.alpha / own.rank for own in settings]
        A = torch.cat([part.tensors["A"] for part in parts], 1)
        B = torch.cat([part.tensors["B"] * scale for part, scale in zip(parts, scales)], 2)
        rows: dict[bytes, int] = {}
        owner = [rows.setdefault(A[:, i].contiguous().numpy().tobytes(), i) for i in range(A.shape[1])]
        B = torch.zeros_like(B).index_add_(2, torch.tensor(owner), B)
        kept = [i for i in rows.values() if B[..., i].any()] or [0]
        A, B = A[:, kept], B[..., kept]
        if A.numel() + B.numel() >= A.shape[0] * B.shape[1] * A.shape[2]:
            return None  # as large as the layer: separate deltas take fewer bytes
        return DeltaTensors(settings[0].model_copy(update={"rank": len(kept), "alpha": None}), {"A": A, "B": B})

    def forward(self, weight: Tensor) -> Tensor:
        return plus_product(weight, self.A, self._scaled())

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        return form.plus(self.A, self._scaled())

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        return projected(layer, x, frozen_weight(layer), layer.bias, self.A, self._scaled())  # type: ignore[arg-type]

    def _scaled(self) -> Tensor:
        return self.B if self.scale == 1 else self.B * self.scale
