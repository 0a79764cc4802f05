"""IA3: one learned factor per output channel or per input channel of a layer.

``side: output``: ``y' = (1 + s) · y``, so ``W' = diag(1 + s) W`` and ``b' = (1 + s) · b``; s [out].
``side: input``: ``y' = W ((1 + s) · x) + b``, so ``W' = W diag(1 + s)``; s [in]. IA3 scales the
output of the key and value projections, and the input of the second layer of the feed-forward block:
``{type: ia3, sites: "blocks.*.attn.qkv[kv]"}`` and ``{type: ia3, sites: "blocks.*.mlp.fc2", side: input}``.

s is stored as the offset from 1 and initialized to zero. ``scale_shift`` also learns a shift.

Computation: the layer's output or input is scaled; the gradient of the full weight is never formed.

Paper: Liu et al., arXiv 2205.05638. There the factors are separate from the layer; here they are merged into it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaSettings, WeightDelta, frozen, frozen_weight


def scale_rows(weight: Tensor, factors: Tensor) -> Tensor:
    """``diag(f) W``: W [out, …], f [out]."""
    return weight * factors.view(-1, *[1] * (weight.ndim - 1))


def scale_columns(weight: Tensor, factors: Tensor, groups: int) -> Tensor:
    """``W diag(f)`` over input channels; each group has its own channels.

    Args:
        weight: W [out, in/g, …].
        factors: f [in].
        groups: g.

    Returns:
        [out, in/g, …].
    """
    blocks = weight.view(groups, -1, *weight.shape[1:])
    return (blocks * factors.view(groups, 1, -1, *[1] * (weight.ndim - 2))).view(weight.shape)


class IA3(WeightDelta):
    """``W' = diag(1 + s) W``, ``b' = (1 + s) · b``, or ``W' = W diag(1 + s)``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.ia3 import IA3
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [IA3.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'scale': [16]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["ia3"] = "ia3"
        side: Literal["output", "input"] = Field("output", description="which channels get factors")

    settings: Settings
    changes_bias = True
    no_weight_decay = frozenset({"scale"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.groups: int = getattr(layer, "groups", 1)
        count = weight.shape[0] if settings.side == "output" else weight.shape[1] * self.groups
        self.scale = nn.Parameter(weight.new_zeros(count))

    def forward(self, weight: Tensor) -> Tensor:
        if self.settings.side == "output":
            return scale_rows(weight, 1 + self.scale)
        return scale_columns(weight, 1 + self.scale, self.groups)

    def bias(self, bias: Tensor) -> Tensor:
        return bias * (1 + self.scale) if self.settings.side == "output" else bias

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        if self.settings.side == "output":
            return form.scale_rows(1 + self.scale)
        return form.scale_columns(1 + self.scale)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        weight, bias = frozen_weight(layer), frozen(layer, "bias")
        is_conv = isinstance(layer, nn.Conv2d)
        factors = (1 + self.scale).to(x.dtype).view((-1, 1, 1) if is_conv else (-1,))
        if self.settings.side == "input":
            x = x * factors
        y = layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)
        return y * factors.to(y.dtype) if self.settings.side == "output" else y
