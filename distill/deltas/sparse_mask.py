"""Sparse with a learned mask: ``W' = W + z ⊙ U`` in training, a ``sparse`` delta of the nonzero entries after it.

U has W's shape and is initialized to zero. The mask z is learned together with it:

- ``mask: l0``, hard concrete gates with location ``log_alpha`` of W's shape, initialized to 0. In training mode
  ``s = sigmoid((log u − log(1−u) + log_alpha) / β)`` with u uniform, in steps of 2⁻⁸, and
  ``z = clamp(s · (ζ − γ) + γ, 0, 1)``; in eval mode ``z = clamp(sigmoid(log_alpha) · (ζ − γ) + γ, 0, 1)``; β 2/3,
  γ −0.1, ζ 1.1. Penalty: ``cost`` times the expected number of open gates, ``Σ sigmoid(log_alpha − β log(−γ/ζ))``.
  Louizos et al., arXiv 1712.01312.
- ``mask: l1``, soft thresholding: ``z ⊙ U = sign(U) · max(|U| − threshold, 0)``, U gets the gradient as if there were
  no threshold, so that entries can become zero and nonzero again. Penalty: ``cost · Σ|U|``. Kusupati et al., arXiv
  2002.03231, with a fixed threshold.

In training it has as many parameters as the layer's weight, or twice as many; how many entries remain depends on the
data. The gradient of the full weight is computed. To add little time and memory, gates are computed and differentiated
in one function, over parts of the weight that fit a CPU's cache, and only z and U are kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from distill.deltas.base import DeltaInit, DeltaSettings, WeightDelta
from distill.deltas.dense import Dense
from distill.deltas.sparse import Sparse

_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1
_CACHED = 2**16
"""Entries of a part per thread: most of its tensors fit a cache of 1 MB, and the overhead of calls is small."""


def draw_noise(like: Tensor) -> Tensor:
    """Uniformly random int8 of the shape of ``like``. One draw gives eight of them, since draws are slow on a CPU."""
    draws = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return draws.view(torch.int8)[: like.numel()].view(like.shape)


def hard_concrete(log_alpha: Tensor, noise: Tensor | None, out: Tensor) -> Tensor:
    """The gates z in [0, 1], without gradient.

    Args:
        log_alpha: locations, of the weight's shape.
        noise: int8 of that shape, see ``draw_noise``, for random gates; None: those of eval mode.
        out: written to, of that shape.

    Returns:
        ``out``.
    """
    if noise is None:
        out.copy_(log_alpha)
    else:
        out.copy_(noise).add_(2**7 + 0.5).mul_(2**-8).logit_().add_(log_alpha).div_(_BETA)
    return out.sigmoid_().mul_(_ZETA - _GAMMA).add_(_GAMMA).clamp_(0, 1)


def expected_open(log_alpha: Tensor) -> Tensor:
    """The expected number of gates that are not zero."""
    return torch.sigmoid(log_alpha - _BETA * math.log(-_GAMMA / _ZETA)).sum()


class _Gated(torch.autograd.Function):
    """``W + z(log_alpha, noise) ⊙ U``; gradients to W, U and log_alpha."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, U: Tensor, log_alpha: Tensor, noise: Tensor | None) -> Tensor:
        changed, z = torch.empty_like(weight), torch.empty_like(U)
        for rows in _parts(U):
            hard_concrete(log_alpha[rows], None if noise is None else noise[rows], out=z[rows])
            # In two steps, so that rounding is that of the sparse delta after training.
            torch.mul(U[rows], z[rows], out=changed[rows]).add_(weight[rows])
        ctx.save_for_backward(U, z)
        ctx.slope = 1 / ((_ZETA - _GAMMA) * (1 if noise is None else _BETA))
        return changed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dW: Tensor) -> tuple[Tensor | None, ...]:
        U, z = ctx.saved_tensors
        dU, d_alpha = torch.empty_like(U), torch.empty_like(U)
        for rows in _parts(U):
            torch.mul(dW[rows], z[rows], out=dU[rows])
            # dz/dlog_alpha = slope (z − γ)(ζ − z) = slope (z − z² − γζ), as γ + ζ = 1; zero where z is 0 or 1.
            d = torch.addcmul(z[rows], z[rows], z[rows], value=-1, out=d_alpha[rows])
            torch.threshold_(d, 0, _GAMMA * _ZETA).sub_(_GAMMA * _ZETA)
            d.mul_(U[rows]).mul_(dW[rows]).mul_(ctx.slope)
        return dW if ctx.needs_input_grad[0] else None, dU, d_alpha, None


def _parts(weight: Tensor) -> Iterator[slice]:
    """Slices of rows that fit the caches of the CPU's cores; one slice on other devices."""
    count = len(weight)
    if weight.device.type == "cpu" and not torch.compiler.is_compiling():
        count = max(1, torch.get_num_threads() * _CACHED // weight[0].numel())
    for first in range(0, len(weight), count):
        yield slice(first, first + count)


class SoftThreshold(torch.autograd.Function):
    """``sign(U) · max(|U| − threshold, 0)``; backward is the identity."""

    @staticmethod
    def forward(ctx: Any, U: Tensor, threshold: float) -> Tensor:
        """Soft thresholding.

        Args:
            ctx: of autograd.
            U: any shape.
            threshold: greater than 0.

        Returns:
            The shape of U.
        """
        return torch.nn.functional.softshrink(U, threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SparseMask(WeightDelta):
    """``W' = W + z ⊙ U``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.sparse_mask import SparseMask
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [SparseMask.Settings()])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'U': [16, 32], 'log_alpha': [16, 32]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(DeltaSettings):
        type: Literal["sparse_mask"] = "sparse_mask"
        mask: Literal["l0", "l1"] = Field(
            "l0", description="how entries are chosen: l0: learned gates; l1: soft thresholding"
        )
        cost: float = Field(1e-6, ge=0, description="loss per open gate (l0), or per unit of Σ|U| (l1)")
        threshold: float = Field(1e-3, gt=0, description="l1 only: entries of U of smaller absolute value count as 0")

    settings: Settings
    no_weight_decay = frozenset({"log_alpha"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.U = nn.Parameter(torch.zeros_like(weight))
        self.log_alpha = nn.Parameter(torch.zeros_like(weight)) if settings.mask == "l0" else None

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight; random in training mode with ``mask: l0``."""
        if self.log_alpha is None:
            return weight + SoftThreshold.apply(self.U, self.settings.threshold)
        noise = draw_noise(self.U) if self.training else None
        return _Gated.apply(weight, self.U, self.log_alpha, noise)

    def penalty(self) -> Tensor | None:
        if not self.settings.cost:
            return None
        return self.settings.cost * (self.U.abs().sum() if self.log_alpha is None else expected_open(self.log_alpha))

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit:
        """Per layer, a sparse delta of the nonzero entries; a dense one if that is smaller, none if all are zero."""
        specs: list[DeltaSettings] = []
        tensors: dict[str, dict[str, Tensor]] = {}
        for site, delta in deltas.items():
            delta.eval()
            change = delta(torch.zeros_like(delta.U)).detach()
            index = change.flatten().nonzero().flatten()
            if 2 * len(index) >= change.numel():
                specs.append(Dense.Settings(sites=(site,)))
                tensors[site] = {"D": change}
            elif len(index):
                specs.append(Sparse.Settings(sites=(site,), entries=len(index)))
                tensors[site] = {"index": index.int(), "values": change.flatten()[index]}
        return DeltaInit(specs, tensors)
