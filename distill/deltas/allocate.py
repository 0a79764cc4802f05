"""Chooses each layer's rank from the gains of its ranks, for a budget of bytes or for a fraction of all gains.

Model: near the weights W* that training all weights would reach, the loss is quadratic with one curvature per layer,
``H_l / 2 · ‖W_l − W*_l‖²``. The best change of rank r keeps the r largest singular values σ of ``W*_l − W_l``, and each
of them lowers the loss by ``H_l σ² / 2``. So the gain of rank i of layer l is ``I_l · σ²_{l,i}``, I_l an estimate of
H_l.

Under a budget, ranks are added in the order of gain per byte. Within a layer, gains fall and every rank costs the same
number of bytes. If a rank costs the same in all layers, the sum of gains is the largest possible; if costs differ, it
is short of that by at most the gain of the first rank that does not fit.

Source of the rule for a fraction of the gains: arXiv 2311.15161, equation for α.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distill.deltas.base import DeltaError


@dataclass(frozen=True)
class Candidate:
    """A layer that can get ranks."""

    gains: Tensor
    """[k], falling: the gains of the first, second, … rank, in any unit that is the same for all layers."""
    per_rank: int
    """Bytes of one rank."""
    fixed: int = 0
    """Bytes of the layer's delta that do not depend on its rank; 0 bytes for rank 0."""
    least: int = 0
    """The smallest rank that it gets."""
    most: int | None = None
    """The largest rank that it gets; None: the number of gains."""

    @property
    def limit(self) -> int:
        return len(self.gains) if self.most is None else min(self.most, len(self.gains))

    def bytes(self, rank: int) -> int:
        return self.fixed + rank * self.per_rank if rank else 0


def within_budget(candidates: Mapping[str, Candidate], budget: int) -> dict[str, int]:
    """Site → rank, with the largest sum of gains for ``budget`` bytes, see above. Ranks without gain are not added.

    Raises:
        DeltaError: the budget is too small for one rank, or for the least ranks of all layers; the text gives the
            bytes.
    """
    ranks = {site: candidate.least for site, candidate in candidates.items()}
    left = budget - sum(candidate.bytes(candidate.least) for candidate in candidates.values())
    if left < 0:
        raise DeltaError(
            f"a budget of {budget:,} bytes is too small: the least ranks of all layers take {budget - left:,} bytes"
        )
    offers: list[tuple[float, int, str]] = []  # the best first; of equal ones, the layer that comes first in the model

    def offer(index: int, site: str) -> None:
        candidate, rank = candidates[site], ranks[site]
        if rank < candidate.limit and float(candidate.gains[rank]) > 0:
            price = candidate.bytes(rank + 1) - candidate.bytes(rank)
            heapq.heappush(offers, (-float(candidate.gains[rank]) / price, index, site))

    for index, site in enumerate(candidates):
        offer(index, site)
    while offers:
        _, index, site = heapq.heappop(offers)
        price = candidates[site].bytes(ranks[site] + 1) - candidates[site].bytes(ranks[site])
        if price <= left:
            ranks[site] += 1
            left -= price
            offer(index, site)
    if not any(ranks.values()):
        _explain_nothing(candidates, budget)
    return ranks


def by_share(candidates: Mapping[str, Candidate], alpha: float) -> dict[str, int]:
    """Site → rank: the fewest ranks, largest gains first, whose gains sum to more than ``alpha`` of all gains.

    Each layer's least and most ranks are applied afterwards.
    """
    gains = sorted(
        ((float(gain), -index, site) for index, (site, c) in enumerate(candidates.items()) for gain in c.gains),
        reverse=True,
    )
    total = sum(gain for gain, _, _ in gains)
    if total <= 0:
        _explain_nothing(candidates, None)
    ranks = dict.fromkeys(candidates, 0)
    kept = 0.0
    for gain, _, site in gains:
        ranks[site] += 1
        kept += gain
        if kept > alpha * total:
            break
    return {site: min(max(rank, candidates[site].least), candidates[site].limit) for site, rank in ranks.items()}


def same_everywhere(candidates: Mapping[str, Candidate], budget: int) -> dict[str, int]:
    """Site → rank: the largest rank for which all layers fit the budget; layers with a smaller limit get their limit.

    The rest of the budget adds one rank each, from the first layer on, so that different choices are compared at nearly
    equal bytes.
    """
    limits = {site: candidate.limit for site, candidate in candidates.items()}

    def cost(rank: int) -> int:
        return sum(candidate.bytes(min(rank, limits[site])) for site, candidate in candidates.items())

    if cost(1) > budget:
        raise DeltaError(f"a budget of {budget:,} bytes is too small: rank 1 in all layers takes {cost(1):,} bytes")
    rank = max(rank for rank in range(1, max(limits.values()) + 1) if cost(rank) <= budget)
    ranks = {site: min(rank, limit) for site, limit in limits.items()}
    left = budget - cost(rank)
    for site, candidate in candidates.items():
        if ranks[site] < limits[site] and candidate.per_rank <= left:
            ranks[site] += 1
            left -= candidate.per_rank
    return ranks


def _explain_nothing(candidates: Mapping[str, Candidate], budget: int | None) -> None:
    useful = {site: c for site, c in candidates.items() if len(c.gains) and float(c.gains[0]) > 0}
    if not useful:
        raise DeltaError("no rank has a gain: all gradients, or all changes of the warm-up, are zero")
    site = min(useful, key=lambda site: useful[site].bytes(1))
    raise DeltaError(
        f"a budget of {budget:,} bytes is too small for one rank: the smallest, of {site!r}, "
        f"takes {useful[site].bytes(1):,} bytes"
    )
