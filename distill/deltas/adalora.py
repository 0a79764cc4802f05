"""AdaLoRA: a low-rank change in the form of a singular value decomposition; training moves ranks between layers.

``W' = W + P diag(λ) Q``, group by group. Shapes: P [g, out/g, r], λ [g, r], Q [g, r, n] with n = in/g · kh · kw and r =
``rank``, at most out/g and n. P and Q are initialized orthonormal, λ to zero; the penalty ``orthogonality ·
(‖PᵀP − I‖² + ‖QQᵀ − I‖²)`` keeps P and Q nearly orthonormal.

Triplet i of a layer (λ_i, column P_i, row Q_i) has the sensitivity ``I = |λ_i g| + mean|P_i g| + mean|Q_i g|``, g the
gradient of each entry. It is smoothed, ``Ī ← β₁ Ī + (1 − β₁) I``, and has the uncertainty ``Ū ← β₂ Ū + (1 − β₂) |I −
Ī|`` and the importance ``Ī · Ū``. Every ``interval`` steps the most important triplets of all layers are kept, as many
as the current budget allows, and the λ of the others is set to zero. The others are still trained and can be kept again
later. The budget is that of all triplets for the fraction ``warm_up`` of the steps, then falls as ``end + (all − end)
(1 − u)³`` with u from 0 to 1, and is ``end`` for the last fraction ``settle``, in which the triplets that are kept no
longer change.

After training, the kept triplets of each layer become a ``low_rank`` delta: A = Q, B = P diag(λ).

Deviations: P and Q are initialized orthonormal, not with small random values; sensitivities are smoothed per triplet,
not per entry, which would take three times the delta's memory; with a ``budget`` in bytes, importance per byte is
compared.

Paper: Zhang et al., arXiv 2303.10512 (β₁ = β₂ = 0.85, orthogonality 0.1).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from augment.base import error_at
from distill.deltas.activation import ActivationForm
from distill.deltas.base import DeltaError, DeltaInit, DeltaSettings, SizedSettings, WeightDelta, frozen_weight
from distill.deltas.low_rank import LowRank
from distill.deltas.projected import plus_product, projected
from distill.deltas.rank_settings import check_bytes, parse_bytes


def budget_share(progress: float, warm_up: float, settle: float) -> float:
    """Fraction of the triplets to be removed that the budget still includes.

    Args:
        progress: fraction of the steps made.
        warm_up: fraction of the steps before the budget falls.
        settle: fraction of the steps, the last ones, with the final budget.

    Returns:
        ``(1 − u)³``, from 1 to 0.
    """
    u = (progress - warm_up) / (1 - warm_up - settle)
    return (1 - min(max(u, 0.0), 1.0)) ** 3


def keep_best(importance: Tensor, price: Tensor, budget: float) -> Tensor:
    """Select triplets by importance per price, the highest first, until the budget is spent.

    Args:
        importance: [N].
        price: [N], ranks or bytes.
        budget: bound on the sum of the prices.

    Returns:
        [N], 1 for the selected triplets, else 0.
    """
    order = torch.argsort(importance / price, descending=True, stable=True)
    fits = (price[order].cumsum(0) <= budget).to(importance.dtype)
    return torch.empty_like(fits).scatter_(0, order, fits)


class AdaLoRA(WeightDelta):
    """``W' = W + P diag(λ) Q``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.adalora import AdaLoRA
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [AdaLoRA.Settings(rank=2)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'P': [1, 16, 2], 'Q': [1, 2, 32], 'lam': [1, 2]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(SizedSettings):
        type: Literal["adalora"] = "adalora"
        rank: int = Field(12, ge=1, description="initial rank of every layer")
        target_rank: float | None = Field(
            None, gt=0, description="mean rank of a layer after training; default: two thirds of rank"
        )
        budget: str | int | None = Field(None, description="bytes after training, instead of target_rank: 200KB, 1MB")
        warm_up: float = Field(0.1, ge=0, lt=1, description="fraction of the steps before the budget falls")
        settle: float = Field(
            0.3, ge=0, lt=1, description="last fraction of the steps, in which ranks no longer change"
        )
        interval: int = Field(10, ge=1, description="steps between reallocations")
        beta1: float = Field(0.85, gt=0, lt=1, description="smoothing of the sensitivity")
        beta2: float = Field(0.85, gt=0, lt=1, description="smoothing of its uncertainty")
        orthogonality: float = Field(0.1, ge=0, description="weight of the penalty")

        _budget_is_bytes = field_validator("budget")(check_bytes)

        @model_validator(mode="after")
        def _parts_fit(self) -> AdaLoRA.Settings:
            if self.budget is not None and self.target_rank is not None:
                raise error_at("target_rank", "give only one of target_rank and budget")
            if self.target_rank is not None and self.target_rank > self.rank:
                raise error_at("target_rank", f"{self.target_rank:g} is more than the initial rank, {self.rank}")
            if self.warm_up + self.settle >= 1:
                raise error_at(
                    "settle", "warm_up and settle leave no steps for the reallocation; their sum must be below 1"
                )
            return self

    settings: Settings
    sensitivity: Tensor
    uncertainty: Tensor
    kept: Tensor
    no_weight_decay = frozenset({"lam"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        groups: int = getattr(layer, "groups", 1)
        rows, inner = weight.shape[0] // groups, weight[0].numel()
        rank = min(settings.rank, rows, inner)
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.P = nn.Parameter(
            torch.stack([nn.init.orthogonal_(torch.empty(rows, rank, **like)) for _ in range(groups)])
        )
        self.Q = nn.Parameter(
            torch.stack([nn.init.orthogonal_(torch.empty(rank, inner, **like)) for _ in range(groups)])
        )
        self.lam = nn.Parameter(torch.zeros(groups, rank, **like))
        for name in ("sensitivity", "uncertainty"):
            self.register_buffer(name, torch.zeros(rank, **like))
        self.register_buffer("kept", torch.ones(rank, **like))

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """Raise ``DeltaError`` if the budget is too small for one rank."""
        assert isinstance(settings, cls.Settings)
        cls._budget(settings, {site: cls(settings, layer) for site, layer in layers.items()}, 0.0)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of one rank of the ``low_rank`` delta that replaces it."""
        return (self.P[..., 0].numel() + self.Q[:, 0].numel()) * self.P.element_size()

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B; in eval mode, without the triplets that are not kept."""
        return self.Q, self.P * (self.lam if self.training else self.lam * self.kept)[:, None, :]

    def forward(self, weight: Tensor) -> Tensor:
        A, B = self.factors()
        return plus_product(weight, A, B)

    def activation_form(self, form: ActivationForm, weight: Tensor) -> ActivationForm | None:
        A, B = self.factors()
        return form.plus(A, B)

    def output(self, layer: nn.Module, x: Tensor) -> Tensor | None:
        A, B = self.factors()
        return projected(layer, x, frozen_weight(layer), layer.bias, A, B)  # type: ignore[arg-type]

    def penalty(self) -> Tensor | None:
        if not self.settings.orthogonality:
            return None
        identity = torch.eye(self.lam.shape[1], device=self.lam.device)
        off = (self.P.mT @ self.P - identity).square().sum() + (self.Q @ self.Q.mT - identity).square().sum()
        return self.settings.orthogonality * off

    @torch.no_grad()
    def observe(self) -> None:
        """Update sensitivity and uncertainty with the gradients of one step."""
        if self.lam.grad is None or self.P.grad is None or self.Q.grad is None:
            return
        now = (self.lam * self.lam.grad).abs().sum(0)
        now += (self.P * self.P.grad).abs().mean((0, 1)) + (self.Q * self.Q.grad).abs().mean((0, 2))
        self.sensitivity.lerp_(now, 1 - self.settings.beta1)
        self.uncertainty.lerp_((now - self.sensitivity).abs(), 1 - self.settings.beta2)

    @classmethod
    @torch.no_grad()
    def after_step(cls, deltas: Mapping[str, Self], step: int, steps: int) -> None:
        """Update the importance of all triplets, and which of them are kept.

        Args:
            deltas: site → delta.
            step: number of steps made, 1 after the first.
            steps: number of steps of the whole training.
        """
        if not deltas:
            return
        settings = next(iter(deltas.values())).settings
        if step == 1:
            cls._budget(settings, deltas, 0.0)  # raises if the budget is too small
        for delta in deltas.values():
            delta.observe()
        last = math.floor(steps * (1 - settings.settle))
        if step == last:
            cls._reallocate(settings, deltas, 0.0)
        elif step > last:
            for delta in deltas.values():
                delta.lam.mul_(delta.kept)
        elif step % settings.interval == 0 and step >= steps * settings.warm_up:
            cls._reallocate(settings, deltas, budget_share(step / steps, settings.warm_up, settings.settle))

    @classmethod
    def _budget(cls, settings: Settings, deltas: Mapping[str, Self], fraction: float) -> tuple[list[int], float]:
        """The price of a triplet in each layer, and the budget ``end + fraction · (all − end)``."""
        each = [1 if settings.budget is None else delta.bytes_per_rank for delta in deltas.values()]
        everything = sum(delta.lam.shape[1] * price for delta, price in zip(deltas.values(), each))
        if settings.budget is None:
            end = (settings.target_rank or settings.rank * 2 / 3) * len(deltas)
        else:
            end = parse_bytes(str(settings.budget))
        if end < min(each):
            unit = "ranks" if settings.budget is None else "bytes"
            raise DeltaError(f"adalora: a budget of {end:g} {unit} is too small: the smallest takes {min(each)} {unit}")
        return each, end + fraction * max(0.0, everything - end)

    @classmethod
    def _reallocate(cls, settings: Settings, deltas: Mapping[str, Self], fraction: float) -> None:
        each, budget = cls._budget(settings, deltas, fraction)
        ranks = [delta.lam.shape[1] for delta in deltas.values()]
        importance = torch.cat([delta.sensitivity * delta.uncertainty for delta in deltas.values()])
        prices = importance.new_tensor([price for rank, price in zip(ranks, each) for _ in range(rank)])
        masks = keep_best(importance, prices, budget).split(ranks)
        for delta, mask in zip(deltas.values(), masks):
            delta.kept.copy_(mask)
            delta.lam.mul_(mask)

    @classmethod
    def finish(cls, settings: DeltaSettings, deltas: Mapping[str, Self]) -> DeltaInit | None:
        assert isinstance(settings, AdaLoRA.Settings)
        if not deltas:
            return None
        each, budget = cls._budget(settings, deltas, 0.0)
        if sum(float(delta.kept.sum()) * price for delta, price in zip(deltas.values(), each)) > budget:
            with torch.no_grad():  # training stopped early, or the best epoch is an earlier one
                cls._reallocate(settings, deltas, 0.0)
        sites: dict[int, list[str]] = defaultdict(list)
        tensors = {}
        for site, delta in deltas.items():
            kept = delta.kept.bool()
            if kept.any():
                sites[int(kept.sum())].append(site)
                B = delta.P * delta.lam[:, None, :]
                tensors[site] = {"A": delta.Q[:, kept].detach(), "B": B[..., kept].detach()}
        ranks = sorted(sites, reverse=True)
        return DeltaInit([LowRank.Settings(rank=rank, sites=tuple(sites[rank])) for rank in ranks], tensors)
