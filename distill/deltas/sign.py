"""Sign (BitDelta): the signs of a weight's change in a warm-up, ``D = W_free − W``, and one learned scale per row.

``W' = W + diag(a) · sign(D)``, a [out] initialized to the mean of |D| over the row, the least-squares scale. Only the
scales are trained, with the experiment's objectives: the paper's scale distillation. The sign of 0 is +1.

``bits`` [⌈numel/8⌉] uint8 holds eight signs per byte, the first in the lowest bit, 1 for +. With ``scale`` [out] the
delta takes about 1/32 of the layer's bytes. W_free are the weights after ``warm_up`` epochs, before training, in which
all weights are trained; training continues with the head from there. If ``prepare`` has not run, all signs are + and
all scales zero.

Deviation: one scale per row; the paper has one per layer.

Paper: Liu et al., arXiv 2402.10193.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.base import Calibration, DeltaInit, DeltaSettings, SizedSettings, WeightDelta
from distill.deltas.ia3 import scale_rows


def pack_signs(D: Tensor) -> Tensor:
    """Eight signs to a byte: the sign of entry i is bit ``i % 8`` of byte ``i // 8``, 1 where D ≥ 0."""
    signs = (D.flatten() >= 0).to(torch.uint8)
    signs = nn.functional.pad(signs, (0, -len(signs) % 8)).view(-1, 8)
    return (signs << torch.arange(8, device=D.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_signs(bits: Tensor, like: Tensor) -> Tensor:
    """±1 in the shape and dtype of ``like``."""
    single = bits[:, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8) & 1
    return single.flatten()[: like.numel()].view(like.shape).to(like.dtype) * 2 - 1


def mean_size(D: Tensor) -> Tensor:
    """[out], mean of |D| over each row: ``argmin_a ‖D − a · sign(D)‖``."""
    return D.flatten(1).abs().mean(1)


class Sign(WeightDelta):
    """``W' = W + diag(scale) · signs``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.sign import Sign
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [Sign.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'scale': [16]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(SizedSettings):
        type: Literal["sign"] = "sign"
        warm_up: int = Field(1, ge=1, description="epochs of training of all weights that give D")

    settings: Settings
    bits: Tensor
    no_weight_decay = frozenset({"scale"})
    proportional_to = frozenset({"scale"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.register_buffer("bits", pack_signs(torch.zeros_like(weight)))
        self.scale = nn.Parameter(weight.new_zeros(weight.shape[0]))

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        return True

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        assert isinstance(settings, Sign.Settings)
        stats = calibration.after(settings.warm_up, "weights")
        tensors = {}
        for site, layer in calibration.layers.items():
            D = (stats.weights[site] - layer.weight).detach()  # type: ignore[operator]
            tensors[site] = {"bits": pack_signs(D), "scale": mean_size(D)}
        return DeltaInit([settings], tensors, stats)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + scale_rows(unpack_signs(self.bits, weight), self.scale)
