"""Branch (Branch-Tuning): convs with smaller windows in parallel to a frozen k×k conv, summed before the norm.

``y' = W ∗ x + b + Σ_j P_j ∗ x``, no norm and no bias in the branches, P_j initialized to zero. Same stride, dilation
and groups as the conv, and the same center, so ``W' = W + Σ_j pad(P_j)`` exactly.

===========  ===========================================================================================
``form``     windows
===========  ===========================================================================================
``1x1``      1×1
``1x3_3x1``  1×3 and 3×1, the paper's main variant
``3x3``      3×3
===========  ===========================================================================================

A window is cut to that of the conv if the conv's is smaller, and left out if another one contains it: a 1×1 conv has
one 1×1 branch, as in the paper. A window cannot be centered in one of another parity (1×1 in the 4×4 of a patch
embedding); such a layer is refused. Shapes: W [out, in/g, kh, kw], P_j [out, in/g, h_j, w_j].

Computation: forward is one conv with W', without a second output; backward computes the gradient of each branch's
window alone.

Paper: Liu et al., arXiv 2403.18266.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from distill.deltas.base import DeltaSettings, LayerRefused, WeightDelta, frozen_weight
from distill.deltas.projected import as_computed, geometry_of, gradient, pads_plainly

_WINDOWS = {"1x1": [(1, 1)], "1x3_3x1": [(1, 3), (3, 1)], "3x3": [(3, 3)]}


def windows(form: str, kernel: tuple[int, int]) -> list[tuple[int, int]]:
    """The branches' windows for a kernel: no larger than it, none inside another."""
    cut = dict.fromkeys((min(h, kernel[0]), min(w, kernel[1])) for h, w in _WINDOWS[form])
    return [a for a in cut if not any(a != b and a[0] <= b[0] and a[1] <= b[1] for b in cut)]


def pad_to(branch: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The branch's weights centered in a window of size ``kernel``, with zeros around them."""
    h, w = ((k - b) // 2 for k, b in zip(kernel, branch.shape[2:]))
    return F.pad(branch, (w, w, h, h))


class Branch(WeightDelta):
    """``W' = W + Σ_j pad(P_j)``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.branch import Branch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [Branch.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'branches.0': [8, 4, 1, 3], 'branches.1': [8, 4, 3, 1]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["branch"] = "branch"
        form: Literal["1x1", "1x3_3x1", "3x3"] = Field("1x3_3x1", description="windows of the parallel convs")

    settings: Settings
    kinds = frozenset({"conv", "depthwise"})
    additive = True

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        out, inner, kh, kw = weight.shape
        shapes = windows(settings.form, (kh, kw))
        for h, w in shapes:
            if (kh - h) % 2 or (kw - w) % 2:
                raise LayerRefused(
                    f"has a {kh}×{kw} window, in which a {h}×{w} branch cannot be centered; leave the layer out, "
                    "or use low_rank or dense there"
                )
        self.branches = nn.ParameterList(weight.new_zeros(out, inner, h, w) for h, w in shapes)

    def forward(self, weight: Tensor) -> Tensor:
        for branch in self.branches:
            weight = weight + pad_to(branch, weight.shape[2:])
        return weight

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        assert isinstance(layer, nn.Conv2d)
        if not pads_plainly(layer):
            return None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            weight = self(frozen_weight(layer))
        x, bias = as_computed(x, layer.bias)
        branches = [branch.to(x.dtype) for branch in self.branches]
        return _Parallel.apply(x, weight.to(x.dtype), bias, geometry_of(layer), *branches)


class _Parallel(torch.autograd.Function):
    """``y = W' ∗ x + b``; gradients to x, b and the branches that W' is made of."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple, *branches: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *branches)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *branches = ctx.saved_tensors
        dx = gradient(dy, x, weight, ctx.geometry, of="x") if ctx.needs_input_grad[0] else None
        db = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        gradients = [_branch_gradient(dy, x, branch, weight.shape[2:], ctx.geometry) for branch in branches]
        return dx, None, db, None, *gradients


def _branch_gradient(dy: Tensor, x: Tensor, branch: Tensor, kernel: tuple[int, ...], geometry: tuple) -> Tensor:
    """The gradient of a conv with the branch's window and less padding; if that is negative, the input is cropped."""
    stride, padding, dilation, groups = geometry
    less = [d * ((k - b) // 2) for k, b, d in zip(kernel, branch.shape[2:], dilation)]
    cut = [max(0, n - p) for n, p in zip(less, padding)]
    x = x[:, :, cut[0] : x.shape[2] - cut[0], cut[1] : x.shape[3] - cut[1]]
    padding = tuple(max(0, p - n) for n, p in zip(less, padding))
    return gradient(dy, x, branch, (stride, padding, dilation, groups), of="weight")
