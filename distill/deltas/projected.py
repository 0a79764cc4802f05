"""One convolution with the changed weight, and gradients to the thin tensors of the change alone.

For ``y = W' ∗ x + b`` with ``W' = W + B A`` per group, backward computes ``dB = Σ dy · (A ∗ x)ᵀ`` and
``dA = corr(x, Bᵀ dy)``. The gradient of the full weight is never formed, no second set of activations is kept, and the
output is that of the merged layer.

Factors of the rows and columns of W, ``W' = diag(R) W diag(S) + B A``, need no gradient of the full weight either. Both
sides of ``y − b`` are known, and each factor scales its part of them, so (sums over batch and places)::

    R_o dR_o = Σ dy_o (y_o − b_o) − (B · dB)_o         S_i dS_i = Σ x_i dx_i − (A · dA)_i

W' is made anew in backward: keeping it from forward to backward would take as much memory as the whole backbone, and
making it costs ``2 r`` operations per weight, which is little beside the convolution's. y is kept where R is learned,
which is free in front of a norm layer: that keeps it too.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Geometry = tuple[Any, Any, Any, int] | None
"""(stride, padding, dilation, groups) of a convolution, None for a Linear."""

_LEAST = 2**-10


def factor(offset: Tensor) -> Tensor:
    """``1 + offset``, but for sizes below 2⁻¹⁰, which become 2⁻¹⁰: its gradient is had by dividing by it.

    The gradient to ``offset`` is that of ``1 + offset`` everywhere, so no factor is caught at the bound.
    """
    plain = 1 + offset
    bounded = torch.where(plain < 0, plain.clamp(max=-_LEAST), plain.clamp(min=_LEAST))
    return plain + (bounded - plain).detach()


def projected(
    layer: nn.Module,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> Tensor | None:
    """The output of a plain Linear or Conv2d whose weight is ``diag(rows) W diag(columns) + B A``.

    Gradients go to x, bias, A, B, rows and columns.

    Args:
        weight: W [out, in/g, kh, kw], frozen.
        A, B: [g, r, in/g · kh · kw] and [g, out/g, r].
        rows, columns: [out] and [in], nowhere zero (see ``factor``); none: ones.

    Returns None where the layer pads in another way than by numbers of zeros, or where columns are learned on an input
    without gradient, the images: the definition is cheaper there.
    """
    if not pads_plainly(layer) or (columns is not None and not x.requires_grad):
        return None
    x, bias = as_computed(x, bias)
    return _Projected.apply(x, weight, bias, A, B, rows, columns, geometry_of(layer))


def pads_plainly(layer: nn.Module) -> bool:
    """Whether the padding is a number of zeros on each side, the same on both, or there is none."""
    return not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


def geometry_of(layer: nn.Module) -> Geometry:
    if isinstance(layer, nn.Conv2d):
        return layer.stride, layer.padding, layer.dilation, layer.groups
    return None


def as_computed(x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Input and bias in the precision that autocast asks for."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), None if bias is None else bias.to(dtype)


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        rows: Tensor | None,
        columns: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        y = convolve(x, changed_weight(weight, A, B, rows, columns, x.dtype), bias, geometry)
        ctx.geometry, ctx.watched = geometry, None
        kept = None if rows is None else y
        if kept is not None and not torch.compiler.is_compiling():
            # An activation that writes into y, as ReLU in place, would make an error of a saved tensor.
            ctx.watched, kept = (y.detach(), y._version), None
        ctx.save_for_backward(x, weight, bias, A, B, rows, columns, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, A, B, rows, columns, y = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        a = A.to(x.dtype).reshape(-1, *weight.shape[1:])
        # Bᵀ as a pointwise layer of dy, not B backwards: the same sums, two to eight times faster on a CPU.
        b = B.mT.to(x.dtype).reshape(len(a), -1, *[1] * (weight.ndim - 2))
        pointwise = None if geometry is None else ((1, 1), (0, 0), (1, 1), geometry[3])
        dA = gradient(convolve(dy, b, None, pointwise), x, a, geometry, of="weight").reshape(A.shape).to(A.dtype)
        dB = gradient(convolve(x, a, None, geometry), dy, b, pointwise, of="weight")
        # With B's own strides, also of sizes of 1: data-parallel training warns of others.
        dB = torch.empty_like(B).copy_(dB.reshape(B.mT.shape).mT)
        dx = drows = dcolumns = None
        if ctx.needs_input_grad[0] or rows is not None:
            changed = changed_weight(weight, A, B, rows, columns, x.dtype)
        if ctx.needs_input_grad[0]:
            dx = gradient(dy, x, changed, geometry, of="x")
        db = None if bias is None else channel_sums(dy, geometry)
        if rows is not None:
            if ctx.watched is not None:
                y, version = ctx.watched
                y = y if y._version == version else convolve(x, changed, bias, geometry)
            drows = channel_sums(dy * y, geometry).to(B.dtype) - (B * dB).sum(2).flatten()
            drows = (drows if bias is None else drows - (bias * db).to(B.dtype)) / rows
        if columns is not None:
            of_change = (A * dA).view(len(A), A.shape[1], weight.shape[1], -1).sum((1, 3)).flatten()
            dcolumns = (channel_sums(x * dx, geometry).to(A.dtype) - of_change) / columns
        return dx, None, db, dA, dB, drows, dcolumns, None


def changed_weight(
    weight: Tensor, A: Tensor, B: Tensor, rows: Tensor | None, columns: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``diag(rows) W diag(columns) + B A`` in its own precision whatever autocast says, then as the layer computes.

    With the strides of W: a convolution chooses its kernel by them, and would round otherwise than the merged one.
    """
    window, scaled = [1] * (weight.ndim - 2), weight
    with torch.autocast(weight.device.type, enabled=False):
        if rows is not None:
            scaled = torch.mul(scaled, rows.view(-1, 1, *window))
        if columns is not None:
            by_group = columns.view(len(A), 1, -1, *window)
            scaled = torch.mul(scaled.unflatten(0, (len(A), -1)), by_group).flatten(0, 1)
        changed = plus_product(scaled, A, B).to(dtype)
    return changed if changed.stride() == weight.stride() else torch.empty_like(weight, dtype=dtype).copy_(changed)


def plus_product(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """``W + B A`` per group, with a gradient. A [g, r, n], B [g, out/g, r].

    The product is added by the call that makes it, in W's own order of memory: on a CPU that takes two thirds of the
    time of adding it afterwards.
    """
    if weight.is_contiguous():
        return torch.baddbmm(weight.view(len(A), -1, A.shape[2]), B, A).view(weight.shape)
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        A = A.unflatten(2, weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)
        ordered = weight.permute(0, 2, 3, 1)
        changed = torch.baddbmm(ordered.view(len(A), -1, A.shape[2]), B, A)
        return changed.view(ordered.shape).permute(0, 3, 1, 2)
    return weight + (B @ A).view(weight.shape)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution, or a Linear where there is no geometry."""
    return F.linear(x, weight, bias) if geometry is None else F.conv2d(x, weight, bias, *geometry)


def gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of: Literal["x", "weight"]) -> Tensor:
    """The gradient of the input or the weight of ``convolve``."""
    if geometry is None:
        return dy @ weight if of == "x" else dy.flatten(0, -2).T @ x.flatten(0, -2)
    stride, padding, dilation, groups = geometry
    mask = [of == "x", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[mask.index(True)]


def channel_sums(t: Tensor, geometry: Geometry) -> Tensor:
    """Sums over all but the channels of what goes in or comes out of ``convolve``."""
    return t.flatten(0, -2).sum(0) if geometry is None else t.sum((0, 2, 3))
