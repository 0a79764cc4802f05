"""Norm affine only: ``γ' = γ + c`` and ``β' = β + h`` of every norm layer, c and h initialized to zero.

A norm without β gets c alone. The statistics of batch norms do not change. ``scale_shift`` with ``kinds: norm`` has as
many parameters, but in multiplicative form, so that it cannot change a γ of zero.

Papers: Frankle et al., arXiv 2003.00152 (batch norm only); Zhao et al., arXiv 2312.11420 (layer norm only).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distill.deltas.base import DeltaSettings, WeightDelta


class NormAffine(WeightDelta):
    """``γ' = γ + scale``, ``β' = β + shift``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.norm_affine import NormAffine
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [NormAffine.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'scale': [16], 'shift': [16]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["norm_affine"] = "norm_affine"

    kinds = frozenset({"norm"})
    changes_bias = True
    additive = True
    proportional_to = frozenset({"scale", "shift"})
    no_weight_decay = frozenset({"scale", "shift"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        bias: Tensor | None = getattr(layer, "bias", None)  # type: ignore[assignment]
        self.scale = nn.Parameter(weight.new_zeros(weight.shape))
        self.shift = None if bias is None else nn.Parameter(bias.new_zeros(bias.shape))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale

    def bias(self, bias: Tensor) -> Tensor:
        assert self.shift is not None
        return bias + self.shift
