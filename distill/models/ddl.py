"""Deep Delta Learning's residual connection, which replaces ``x + f(x)`` in ``ddl_vit`` and ``ddl_resnet``.

A token's state is a matrix X [d, m]. A sublayer f reads it as a vector and returns a direction k; the gate β moves
the component of the state along k towards v:

    x = compress(X), c = RMSNorm(x), k = f(c) / √(‖f(c)‖² + ε²)
    X' = X + β k (vᵀ − kᵀX) = (I − β k kᵀ) X + β k vᵀ          m = 1:   x' = x + β (v − kᵀx) k
    β = 2·sigmoid(w·c + b₀), or 2·sigmoid(w₂·tanh(W₁ c) + b₀) with ``gate: mlp`` (128 hidden); in fp32
    v = W_v c, or 4·sigmoid(W_v x + b) with ``value: sigmoid``

(I − β k kᵀ) has the eigenvalue 1 − β once and 1 otherwise: it is the identity for β = 0, a projection for 1, a
reflection for 2. b₀ is initialized to 0, so that β is near 1. Expansion repeats x over the m columns, compression
multiplies them by a vector that is initialized to 1/m; both include a depthwise conv of width 4 along the columns,
initialized to the identity. For m = 1 both are the identity.

Between blocks, states have the shape [..., d · m], as timm expects it.

Paper: Zhang et al., Deep Delta Learning, arXiv 2601.00417.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.deltas.deep_delta import delta_update, unit_key, wide

_WINDOW = 4


class DeltaResidual(nn.Module):
    """``X + β k (vᵀ − kᵀX)`` for states [..., d · m].

    Args:
        dim: d, width of the sublayer.
        values: m, columns of the state.
        gate: of β: "linear", or "mlp" with 128 hidden units.
        value: of v: "linear" in c, or 4 times the "sigmoid" of a linear map of x, before normalization.
    """

    def __init__(
        self,
        dim: int,
        values: int = 1,
        gate: Literal["linear", "mlp"] = "linear",
        value: Literal["linear", "sigmoid"] = "linear",
    ):
        super().__init__()
        self.values, self.sigmoid = values, value == "sigmoid"
        last = nn.Linear(128 if gate == "mlp" else dim, 1)
        nn.init.zeros_(last.bias)
        self.gate = nn.Sequential(nn.Linear(dim, 128), nn.Tanh(), last) if gate == "mlp" else last
        self.value = nn.Linear(dim, values, bias=self.sigmoid)

    def extra_repr(self) -> str:
        gate = "mlp" if isinstance(self.gate, nn.Sequential) else "linear"
        value = "sigmoid" if self.sigmoid else "linear"
        return f"dim={self.value.in_features}, values={self.values}, gate={gate}, value={value}"

    def forward(self, state: Tensor, x: Tensor, c: Tensor, proposal: Tensor) -> Tensor:
        """Update the state.

        Args:
            state: X, [..., d · m].
            x: compress(X), [..., d].
            c: RMSNorm(x), [..., d].
            proposal: f(c), the sublayer's output [..., d].

        Returns:
            X', [..., d · m].
        """
        v = 4 * wide(self.value(x)).sigmoid() if self.sigmoid else wide(self.value(c))
        with torch.autocast(state.device.type, enabled=False):
            beta = 2 * self.gate(wide(c)).squeeze(-1).sigmoid()
            X = state.unflatten(-1, (-1, self.values))
            return delta_update(X, unit_key(proposal), v, beta).flatten(-2)


class Expand(nn.Module):
    """x [..., d] → a state [..., d · m]; before training, every column is x."""

    def __init__(self, dim: int, values: int):
        super().__init__()
        self.values = values
        self.window = _identity_window(dim)

    def extra_repr(self) -> str:
        return f"dim={len(self.window)}, values={self.values}"

    def forward(self, x: Tensor) -> Tensor:
        X = x.unsqueeze(-1).expand(*x.shape, self.values)
        return _along_columns(X, self.window).flatten(-2)


class Compress(nn.Module):
    """A state [..., d · m] → x [..., d]; before training, the mean of the columns."""

    def __init__(self, dim: int, values: int):
        super().__init__()
        self.values = values
        self.window = _identity_window(dim)
        self.reader = nn.Parameter(torch.full((values,), 1 / values))

    def extra_repr(self) -> str:
        return f"dim={len(self.window)}, values={self.values}"

    def forward(self, state: Tensor) -> Tensor:
        return _along_columns(state.unflatten(-1, (-1, self.values)), self.window) @ self.reader


def expansion(dim: int, values: int) -> nn.Module:
    """x [..., d] → state [..., d · m]; the identity for m = 1."""
    return Expand(dim, values) if values > 1 else nn.Identity()


def compression(dim: int, values: int) -> nn.Module:
    """State [..., d · m] → x [..., d]; the identity for m = 1."""
    return Compress(dim, values) if values > 1 else nn.Identity()


def _identity_window(dim: int) -> nn.Parameter:
    window = torch.zeros(dim, 1, _WINDOW)
    window[:, :, -1] = 1
    return nn.Parameter(window)


def _along_columns(X: Tensor, window: Tensor) -> Tensor:
    """Depthwise conv of X [..., d, m] along m; a column reads itself and the three before it."""
    rows = F.pad(X.reshape(-1, *X.shape[-2:]), (_WINDOW - 1, 0))
    return F.conv1d(rows, window, groups=len(window)).reshape(X.shape)
