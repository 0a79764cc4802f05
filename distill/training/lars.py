"""LARS: a learning rate for each matrix, in proportion to the ratio of the norms of its weights and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.SGD):
    """SGD whose gradients are ``t · (g + λ w)`` with ``t = c ‖w‖ / (‖g‖ + λ ‖w‖)``; 1 for vectors, or if a norm is 0.

    With ``clip``, ``t ≤ lr`` is required, as in LARC: ``t / lr`` and at most 1 takes the place of t.

    The numbers are those of ``timm.optim.Lars``, whose update cannot be skipped without synchronizing the device; here
    the fused kernel of SGD reads the flag of :mod:`distill.training.guard`. Gradients keep their values.

    Args:
        params: parameters or groups, as for SGD.
        trust: c.
        clip: LARC's bound.
        eps: added to the denominator.
        arguments: further ones of SGD.

    Paper: You et al., arXiv 1708.03888.
    """

    def __init__(self, params: Any, *, trust: float = 1e-3, clip: bool = False, eps: float = 1e-8, **arguments: Any):
        super().__init__(params, fused=True, **arguments)
        self.trust, self.clip, self.eps = trust, clip, eps

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, trust={self.trust}, clip={self.clip})"

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        before: list[tuple[Tensor, Tensor]] = []
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            own = [(p, p.grad) for p in group["params"] if p.grad is not None]
            for (parameter, _), adapted in zip(own, self._adapted(own, group)):
                parameter.grad = adapted
            before += own
            group["weight_decay"] = 0.0
        try:
            super().step()
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        return loss

    def _adapted(self, own: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> list[Tensor]:
        """The gradients that SGD takes, in new tensors."""
        if not own:
            return []
        weights, gradients = [p for p, _ in own], [g for _, g in own]
        adapted = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        chosen = [number for number, weight in enumerate(weights) if weight.ndim > 1]
        if chosen:
            w = torch.stack(torch._foreach_norm([weights[number] for number in chosen]))
            g = torch.stack(torch._foreach_norm([gradients[number] for number in chosen]))
            ratio = self.trust * w / (g + group["weight_decay"] * w + self.eps)
            ratio = torch.where((w > 0) & (g > 0), ratio, 1.0)
            if self.clip:
                ratio = (ratio / group["lr"]).clamp(max=1.0)
            torch._foreach_mul_([adapted[number] for number in chosen], list(ratio.unbind()))
        return adapted


__all__ = ["Lars"]
