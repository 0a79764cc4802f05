"""One convolution with the changed weight, and gradients of the change's factors alone.

For ``y = W' ∗ x + b`` with ``W' = W + B A`` per group, backward computes ``dB = Σ dy · (A ∗ x)ᵀ`` and
``dA = corr(x, Bᵀ dy)``. The gradient of the full weight is never formed, no second set of activations is kept, and the
output equals that of the merged layer.

Factors of the rows and columns of W, ``W' = diag(R) W diag(S) + B A``, need no gradient of the full weight either.
Their gradients follow from the layer's input x and output y, with sums over batch and positions::

    R_o dR_o = Σ dy_o (y_o − b_o) − (B · dB)_o         S_i dS_i = Σ x_i dx_i − (A · dA)_i

W' is computed again in backward: to keep it would take as much memory as the whole backbone, and to compute it takes
``2 r`` operations per weight, few compared with the convolution. y is kept if R is learned; a norm layer that follows
keeps it anyway.
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
    """``1 + offset``, at least 2⁻¹⁰ in absolute value, because its gradient is computed by dividing by it.

    The gradient of ``offset`` is that of ``1 + offset`` everywhere, so training can move a factor away from the bound.
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
        layer: gives stride, padding, dilation and groups.
        x: input, [B, in, H, W] or [..., in].
        weight: W [out, in/g, kh, kw] or [out, in], frozen.
        bias: [out], or None.
        A: [g, r, n], n = in/g · kh · kw.
        B: [g, out/g, r].
        rows: [out], nowhere zero (see ``factor``); None: ones.
        columns: [in], nowhere zero; None: ones.

    Returns:
        [B, out, H', W'] or [..., out]. None if the layer does not pad by numbers of zeros, or if there are columns but
        x has no gradient, as images have none: the changed weight itself is then used.
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
    """Input and bias in autocast's dtype, if autocast is on."""
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
            # If an in-place activation writes into y, autograd raises an error for a saved tensor.
            ctx.watched, kept = (y.detach(), y._version), None
        ctx.save_for_backward(x, weight, bias, A, B, rows, columns, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, A, B, rows, columns, y = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        a = A.to(x.dtype).reshape(-1, *weight.shape[1:])
        # Bᵀ as a pointwise layer on dy: the same sums as B's backward, two to eight times faster on a CPU.
        b = B.mT.to(x.dtype).reshape(len(a), -1, *[1] * (weight.ndim - 2))
        pointwise = None if geometry is None else ((1, 1), (0, 0), (1, 1), geometry[3])
        dA = gradient(convolve(dy, b, None, pointwise), x, a, geometry, of="weight").reshape(A.shape).to(A.dtype)
        dB = gradient(convolve(x, a, None, geometry), dy, b, pointwise, of="weight")
        # With B's own strides, also of axes of size 1: DDP warns if they differ.
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
    """``diag(rows) W diag(columns) + B A``, computed in W's dtype with autocast off, then converted.

    It has the strides of W: a convolution selects its kernel by them, and other kernels round differently.

    Args:
        weight: W [out, in/g, kh, kw] or [out, in].
        A: [g, r, n].
        B: [g, out/g, r].
        rows: [out]; None: ones.
        columns: [in]; None: ones.
        dtype: of the result.

    Returns:
        The shape of W.
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
    """``W + B A`` per group, with a gradient.

    One call multiplies and adds, in W's memory format: on a CPU it takes two thirds of the time of two calls.

    Args:
        weight: W [out, in/g, kh, kw] or [out, in].
        A: [g, r, n], n = in/g · kh · kw.
        B: [g, out/g, r].

    Returns:
        The shape of W.
    """
    if _channels_last(weight):
        A = A.unflatten(2, weight.shape[1:]).permute(0, 1, 3, 4, 2).flatten(2)
        ordered = weight.permute(0, 2, 3, 1)
        changed = torch.baddbmm(ordered.view(len(A), -1, A.shape[2]), B, A)
        return changed.view(ordered.shape).permute(0, 3, 1, 2)
    if weight.is_contiguous():
        return torch.baddbmm(weight.view(len(A), -1, A.shape[2]), B, A).view(weight.shape)
    return weight + (B @ A).view(weight.shape)


def _channels_last(weight: Tensor) -> bool:
    """Whether a weight has the strides of channels_last, also those of axes of size 1.

    ``is_contiguous`` ignores these, and a change with other ones would have to be copied.
    """
    if weight.ndim != 4 or not weight.is_contiguous(memory_format=torch.channels_last):
        return False
    return weight.stride(1) == 1 and weight.stride(3) == weight.shape[1]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """A convolution, or a Linear if ``geometry`` is None.

    Args:
        x: [B, in, H, W] or [..., in].
        weight: [out, in/g, kh, kw] or [out, in].
        bias: [out], or None.
        geometry: stride, padding, dilation and groups.

    Returns:
        [B, out, H', W'] or [..., out].
    """
    return F.linear(x, weight, bias) if geometry is None else F.conv2d(x, weight, bias, *geometry)


def gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, of: Literal["x", "weight"]) -> Tensor:
    """The gradient of the input or the weight of ``convolve``.

    Args:
        dy: gradient of its output.
        x: its input.
        weight: its weight.
        geometry: as in ``convolve``.
        of: which gradient.

    Returns:
        The shape of ``x`` or ``weight``.
    """
    if geometry is None:
        return dy @ weight if of == "x" else dy.flatten(0, -2).T @ x.flatten(0, -2)
    stride, padding, dilation, groups = geometry
    mask = [of == "x", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[mask.index(True)]


def channel_sums(t: Tensor, geometry: Geometry) -> Tensor:
    """Sums of an input or output of ``convolve`` over all axes but the channels: [C]."""
    return t.flatten(0, -2).sum(0) if geometry is None else t.sum((0, 2, 3))
