"""One convolution with the changed weight, and gradients to the two thin factors of the change alone.

For ``y = W' ∗ x + b`` with ``W' = W + B A`` per group, backward computes ``dB = Σ dy · (A ∗ x)ᵀ`` and
``dA = corr(x, Bᵀ dy)``. The gradient of the full weight is never formed, no second set of activations is kept, and the
output is bit-equal to the merged layer's.

W' is made anew in backward: keeping it from forward to backward would take as much memory as the whole backbone, and
making it costs ``2 r`` operations per weight, which is little beside the convolution's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def projected(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor | None:
    """The output of a plain Linear or Conv2d whose weight is ``W + B A``, with gradients to x, bias, A and B.

    Args:
        weight: W [out, in/g, kh, kw], frozen.
        A, B: [g, r, in/g · kh · kw] and [g, out/g, r].

    Returns None where the layer pads in another way than by numbers of zeros.
    """
    if isinstance(layer, nn.Conv2d) and not pads_plainly(layer):
        return None
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    if not isinstance(layer, nn.Conv2d):
        return _Linear.apply(x, weight, bias, A, B)
    return _Conv.apply(x, weight, bias, A, B, (layer.stride, layer.padding, layer.dilation, layer.groups))


def pads_plainly(layer: nn.Conv2d) -> bool:
    """Whether the padding is a number of zeros on each side, the same on both."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _changed(weight: Tensor, A: Tensor, B: Tensor, dtype: torch.dtype) -> Tensor:
    """``W + B A`` in its own precision whatever autocast says, then as the layer computes.

    With the strides of W: a convolution chooses its kernel by them, and would round otherwise than the merged one.
    """
    with torch.autocast(weight.device.type, enabled=False):
        return torch.add(weight, (B @ A).view(weight.shape), out=torch.empty_like(weight)).to(dtype)


class _Linear(torch.autograd.Function):
    """``y = x (W + B A)ᵀ + b``; gradients to x, b, A [1, r, in], B [1, out, r]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        return F.linear(x, _changed(weight, A, B, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        a, b = A[0].to(x.dtype), B[0].to(x.dtype)
        dx = dy @ _changed(weight, A, B, x.dtype) if ctx.needs_input_grad[0] else None
        rows_x, rows_dy = x.flatten(0, -2), dy.flatten(0, -2)
        db = rows_dy.sum(0) if ctx.needs_input_grad[2] else None
        dA = (rows_dy @ b).T @ rows_x
        dB = rows_dy.T @ (rows_x @ a.T)
        return dx, None, db, dA[None].to(A.dtype), dB[None].to(B.dtype)


class _Conv(torch.autograd.Function):
    """``y = (W + B A) ∗ x + b``; gradients to x, b, A [g, r, in/g · kh · kw], B [g, out/g, r]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, geometry: tuple
    ) -> Tensor:
        ctx.save_for_backward(x, weight, A, B)
        ctx.geometry = geometry
        return F.conv2d(x, _changed(weight, A, B, x.dtype), bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, A, B = ctx.saved_tensors
        geometry = ctx.geometry
        pointwise = ((1, 1), (0, 0), (1, 1), geometry[3])
        a = A.to(x.dtype).reshape(-1, *weight.shape[1:])
        b = B.to(x.dtype).reshape(len(weight), -1, 1, 1)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = conv_gradient(dy, x, _changed(weight, A, B, x.dtype), geometry, of="x")
        db = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        Ax = F.conv2d(x, a, None, *geometry)
        Bdy = conv_gradient(dy, Ax, b, pointwise, of="x")
        dA = conv_gradient(Bdy, x, a, geometry, of="weight")
        dB = conv_gradient(dy, Ax, b, pointwise, of="weight")
        return dx, None, db, dA.reshape(A.shape).to(A.dtype), dB.reshape(B.shape).to(B.dtype), None


def conv_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: tuple, of: Literal["x", "weight"]) -> Tensor:
    """The gradient of a convolution's input or weight; ``geometry`` is (stride, padding, dilation, groups)."""
    stride, padding, dilation, groups = geometry
    mask = [of == "x", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[mask.index(True)]
