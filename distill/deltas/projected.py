"""One convolution with the changed weight, and gradients to the two thin factors of the change alone.

For ``y = W' ∗ x + b`` with ``W' = W + B A`` per group, backward computes ``dB = Σ dy · (A ∗ x)ᵀ`` and
``dA = corr(x, Bᵀ dy)``. The gradient of the full weight is never formed, no second set of activations is kept, and the
output is bit-equal to the merged layer's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def projected(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor | None:
    """The output of a plain Linear or Conv2d whose weight is ``weight``, with gradients to x, bias, A and B.

    Args:
        weight: the changed weight [out, in/g, kh, kw], without a graph.
        A, B: [g, r, in/g · kh · kw] and [g, out/g, r], the factors that the change of ``weight`` is a product of.

    Returns None where the layer pads in another way than by numbers of zeros.
    """
    if isinstance(layer, nn.Conv2d) and not pads_plainly(layer):
        return None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, A, B = x.to(dtype), weight.to(dtype), A.to(dtype), B.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if not isinstance(layer, nn.Conv2d):
        return _Linear.apply(x, weight, bias, A[0], B[0])
    rank_rows = A.reshape(-1, *weight.shape[1:])
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return _Conv.apply(x, weight, bias, rank_rows, B.reshape(*weight.shape[:1], -1, 1, 1), geometry)


def pads_plainly(layer: nn.Conv2d) -> bool:
    """Whether the padding is a number of zeros on each side, the same on both."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


class _Linear(torch.autograd.Function):
    """``y = x Wᵀ + b``; gradients to x, b, A [r, in], B [out, r]; W is a function of A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        rows_x, rows_dy = x.flatten(0, -2), dy.flatten(0, -2)
        db = rows_dy.sum(0) if ctx.needs_input_grad[2] else None
        dA = (rows_dy @ B).T @ rows_x
        dB = rows_dy.T @ (rows_x @ A.T)
        return dx, None, db, dA, dB


class _Conv(torch.autograd.Function):
    """``y = W ∗ x + b``; gradients to x, b, A [g·r, in/g, kh, kw], B [out, r, 1, 1]; W is a function of A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, geometry: tuple
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        geometry = ctx.geometry
        pointwise = ((1, 1), (0, 0), (1, 1), geometry[3])
        dx = conv_gradient(dy, x, weight, geometry, of="x") if ctx.needs_input_grad[0] else None
        db = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        Ax = F.conv2d(x, A, None, *geometry)
        Bdy = conv_gradient(dy, Ax, B, pointwise, of="x")
        dA = conv_gradient(Bdy, x, A, geometry, of="weight")
        dB = conv_gradient(dy, Ax, B, pointwise, of="weight")
        return dx, None, db, dA, dB, None


def conv_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: tuple, of: Literal["x", "weight"]) -> Tensor:
    """The gradient of a convolution's input or weight; ``geometry`` is (stride, padding, dilation, groups)."""
    stride, padding, dilation, groups = geometry
    mask = [of == "x", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[mask.index(True)]
