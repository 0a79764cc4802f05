"""Bias only (BitFit): ``b' = b + h``, h [out] initialized to zero, on any layer with a bias, norms included.

Paper: Ben Zaken et al., BitFit, arXiv 2106.10199.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distill.deltas.base import DeltaSettings, LayerRefused, WeightDelta


class Bias(WeightDelta):
    """``b' = b + shift``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.bias import Bias
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [Bias.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'shift': [16]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["bias"] = "bias"

    kinds = frozenset({"linear", "conv", "depthwise", "norm"})
    changes_weight = False
    changes_bias = True
    additive = True
    proportional_to = frozenset({"shift"})
    no_weight_decay = frozenset({"shift"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        bias: Tensor | None = getattr(layer, "bias", None)  # type: ignore[assignment]
        if bias is None:
            raise LayerRefused("has no bias")
        self.shift = nn.Parameter(bias.new_zeros(bias.shape))

    def forward(self, weight: Tensor) -> Tensor:
        return weight

    def bias(self, bias: Tensor) -> Tensor:
        return bias + self.shift
