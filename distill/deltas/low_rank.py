"""Low rank (LoRA): ``W' = W + (alpha / rank) · B A``.

Shapes: W [out, in/g, kh, kw] of a conv with g groups (Linear: g = 1, no window), n = in/g · kh · kw,
A [g, rank, n], B [g, out/g, rank]. Groups are changed block by block, one pair per group, so that merging is exact
for grouped and depthwise convs too. A starts Kaiming uniform as a Linear's weight does, B at zero.

Deviation from LoRA for convs: the whole window is one row of A (the ``[rank, in · kh · kw]`` form), without dropout.

Cheap way: one convolution with the changed weight, then backward computes ``dB = Σ dy · (A ∗ x)ᵀ`` and
``dA = corr(x, Bᵀ dy)``. The gradient of the full weight is never formed, no second set of activations is kept, and the
output is bit-equal to the merged layer's.

Paper: Hu et al., LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from distill.deltas.base import DeltaError, DeltaSettings, LayerRefused, Learned, WeightDelta, frozen


def low_rank_change(A: Tensor, B: Tensor, scale: float, shape: torch.Size) -> Tensor:
    """``scale · B A`` per group, as a weight of ``shape``. A [g, r, n], B [g, out/g, r]."""
    return (scale * (B @ A)).view(shape)


class LowRank(WeightDelta):
    """``W + (alpha / rank) B A``, block by block for grouped convs."""

    class Settings(DeltaSettings):
        type: Literal["low_rank"] = "low_rank"
        rank: int = Field(8, ge=1, description="inner width of every block")
        alpha: float | None = Field(
            None, gt=0, description="the change is scaled by alpha / rank; none means rank, so 1"
        )
        oversized: Literal["skip", "dense", "error"] = Field(
            "skip",
            description="where the delta would hold as many numbers as the layer (depthwise convs, tiny layers): pass "
            "over it (an error if the pattern finds nothing else), learn a dense change instead, or an error",
        )

    settings: Settings
    additive = True
    proportional_to = frozenset({"B", "D"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups: int = getattr(layer, "groups", 1)
        out, inner = weight.shape[0], weight[0].numel()
        self.scale = 1.0 if settings.alpha is None else settings.alpha / settings.rank
        size = settings.rank * (groups * inner + out)
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None
        self.D: nn.Parameter | None = None
        if size < weight.numel():
            self.A = nn.Parameter(torch.empty(groups, settings.rank, inner, **like))
            nn.init.uniform_(self.A, -1 / math.sqrt(inner), 1 / math.sqrt(inner))
            self.B = nn.Parameter(torch.zeros(groups, out // groups, settings.rank, **like))
        elif settings.oversized == "dense":
            self.D = nn.Parameter(torch.zeros_like(weight))
        else:
            text = f"of {weight.numel()} numbers would get {size} at rank {settings.rank}"
            advice = "lower the rank, set oversized: dense, or leave the layer out"
            kind = DeltaError if settings.oversized == "error" else LayerRefused
            raise kind(f"{text}; {advice}")

    @classmethod
    def summed(cls, parts: Sequence[Learned]) -> Learned | None:
        """The ranks of all parts side by side. Directions of equal A become one, those whose B is zero go."""
        if any("D" in part.tensors for part in parts):
            return super().summed(parts)
        settings: Any = [part.settings for part in parts]
        scales = [1.0 if one.alpha is None else one.alpha / one.rank for one in settings]
        A = torch.cat([part.tensors["A"] for part in parts], 1)
        B = torch.cat([part.tensors["B"] * scale for part, scale in zip(parts, scales)], 2)
        rows: dict[bytes, int] = {}
        owner = [rows.setdefault(A[:, i].contiguous().numpy().tobytes(), i) for i in range(A.shape[1])]
        B = torch.zeros_like(B).index_add_(2, torch.tensor(owner), B)
        kept = [i for i in rows.values() if B[..., i].any()] or [0]
        A, B = A[:, kept], B[..., kept]
        if A.numel() + B.numel() >= A.shape[0] * B.shape[1] * A.shape[2]:
            return None  # as large as the layer: several deltas on it are the smaller form
        return Learned(settings[0].model_copy(update={"rank": len(kept), "alpha": None}), {"A": A, "B": B})

    def forward(self, weight: Tensor) -> Tensor:
        if self.A is None or self.B is None:
            assert self.D is not None
            return weight + self.D
        return weight + low_rank_change(self.A, self.B, self.scale, weight.shape)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        if self.A is None or self.B is None:
            return None
        is_conv = isinstance(layer, nn.Conv2d)
        if is_conv and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return None
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            weight = self(frozen(layer, "weight"))
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        A: Tensor = self.A
        B = self.B * self.scale
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, A, B = x.to(dtype), weight.to(dtype), A.to(dtype), B.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if not is_conv:
            return _Linear.apply(x, weight, bias, A[0], B[0])
        rank_rows = A.reshape(-1, *weight.shape[1:])
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return _Conv.apply(x, weight, bias, rank_rows, B.reshape(*weight.shape[:1], -1, 1, 1), geometry)


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
        dx = _conv_gradient(dy, x, weight, geometry, of="x") if ctx.needs_input_grad[0] else None
        db = dy.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        Ax = F.conv2d(x, A, None, *geometry)
        Bdy = _conv_gradient(dy, Ax, B, pointwise, of="x")
        dA = _conv_gradient(Bdy, x, A, geometry, of="weight")
        dB = _conv_gradient(dy, Ax, B, pointwise, of="weight")
        return dx, None, db, dA, dB, None


def _conv_gradient(dy: Tensor, x: Tensor, weight: Tensor, geometry: tuple, of: Literal["x", "weight"]) -> Tensor:
    stride, padding, dilation, groups = geometry
    mask = [of == "x", of == "weight", False]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )
    return gradients[mask.index(True)]
