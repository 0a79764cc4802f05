"""Scale and shift: ``y' = (1 + s) · y + h`` per output channel, so ``W' = diag(1 + s) W`` and ``b' = (1 + s) · b + h``.

Shapes: s, h [out], both initialized to zero. A layer without a bias gets s alone. On norm layers alone
(``kinds: [norm]``) this is norm-affine tuning.

Computation: the layer's output is scaled and shifted; the gradient of the full weight is never formed.

Papers: Lian et al., SSF, arXiv 2210.08823; Liu et al., IA3, arXiv 2205.05638 (scale only).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaSettings, WeightDelta, frozen


class ScaleShift(WeightDelta):
    """``W' = diag(1 + scale) W``, ``b' = (1 + scale) · b + shift``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.scale_shift import ScaleShift
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [ScaleShift.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'scale': [8], 'shift': [8]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["scale_shift"] = "scale_shift"

    kinds = frozenset({"linear", "conv", "depthwise", "norm"})
    changes_bias = True
    proportional_to = frozenset({"scale", "shift"})
    no_weight_decay = frozenset({"scale", "shift"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.scale = nn.Parameter(weight.new_zeros(weight.shape[0]))
        has_bias = getattr(layer, "bias", None) is not None
        self.shift = nn.Parameter(weight.new_zeros(weight.shape[0])) if has_bias else None

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (1 + self.scale).view(-1, *[1] * (weight.ndim - 1))

    def bias(self, bias: Tensor) -> Tensor:
        assert self.shift is not None
        return bias * (1 + self.scale) + self.shift

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        return form.scale_rows(1 + self.scale)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        weight, bias = frozen(layer, "weight"), frozen(layer, "bias")
        assert weight is not None
        if isinstance(layer, nn.Conv2d):
            y = layer._conv_forward(x, weight, bias)  # handles every padding mode
            channels: tuple[int, ...] = (-1, 1, 1)
        else:
            y = F.linear(x, weight, bias)
            channels = (-1,)
        scale = (1 + self.scale).to(y.dtype).view(channels)
        if self.shift is None:
            return y * scale
        return torch.addcmul(self.shift.to(y.dtype).view(channels), y, scale)
