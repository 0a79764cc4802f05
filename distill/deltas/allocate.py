"""Ranks from gains: which layer gets how many, under a budget of bytes or for a share of all that could be gained.

Model: near the weights W* that free training would reach, the loss is quadratic with one curvature per layer,
``H_l / 2 · ‖W_l − W*_l‖²``. The best change of rank r keeps the r largest singular values σ of ``W*_l − W_l``, and each
of them takes ``H_l σ² / 2`` off the loss. So rank i of layer l gains ``I_l · σ²_{l,i}``, I_l an estimate of H_l.

Under a budget, ranks are bought in the order of gain per byte. Within a layer gains fall and every rank costs the same,
so that is the best there is when one rank costs the same everywhere; where costs differ, what is lost against the best
is at most the gain of the one rank that did not fit any more.

Source of the share rule: arXiv 2311.15161, equation for α.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from distill.deltas.base import DeltaError


@dataclass(frozen=True)
class Candidate:
    """A layer that could get ranks."""

    gains: Tensor
    """[k], falling: what the first, second, … rank gains; in any unit, the same for all layers."""
    per_rank: int
    """Bytes of one rank."""
    fixed: int = 0
    """Bytes that the layer's delta takes besides, as soon as it has a rank."""
    least: int = 0
    """Ranks that it gets in any case."""
    most: int | None = None
    """Ranks beyond which it gets none; None: as many as there are gains."""

    @property
    def limit(self) -> int:
        return len(self.gains) if self.most is None else min(self.most, len(self.gains))

    def bytes(self, rank: int) -> int:
        return self.fixed + rank * self.per_rank if rank else 0


def within_budget(candidates: Mapping[str, Candidate], budget: int) -> dict[str, int]:
    """Site → rank: as much gain as ``budget`` bytes buy. Ranks that gain nothing are not bought.

    Raises:
        DeltaError: the budget is too small for one rank, or for the least ranks together; it says which would do.
    """
    ranks = {site: candidate.least for site, candidate in candidates.items()}
    left = budget - sum(candidate.bytes(candidate.least) for candidate in candidates.values())
    if left < 0:
        raise DeltaError(
            f"a budget of {budget:,} bytes is too small: the least ranks everywhere take {budget - left:,} bytes"
        )
    offers: list[tuple[float, int, str]] = []  # the best first; of equal ones the model's first layer

    def offer(place: int, site: str) -> None:
        candidate, rank = candidates[site], ranks[site]
        if rank < candidate.limit and float(candidate.gains[rank]) > 0:
            price = candidate.bytes(rank + 1) - candidate.bytes(rank)
            heapq.heappush(offers, (-float(candidate.gains[rank]) / price, place, site))

    for place, site in enumerate(candidates):
        offer(place, site)
    while offers:
        _, place, site = heapq.heappop(offers)
        price = candidates[site].bytes(ranks[site] + 1) - candidates[site].bytes(ranks[site])
        if price <= left:
            ranks[site] += 1
            left -= price
            offer(place, site)
    if not any(ranks.values()):
        _explain_nothing(candidates, budget)
    return ranks


def by_share(candidates: Mapping[str, Candidate], alpha: float) -> dict[str, int]:
    """Site → rank: the fewest ranks, largest gains first, whose gains sum to more than ``alpha`` of all gains.

    A layer's least and most ranks bind afterwards.
    """
    gains = sorted(
        ((float(gain), -place, site) for place, (site, c) in enumerate(candidates.items()) for gain in c.gains),
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
    """Site → rank: one rank for all, as large as fits, but in no layer more than it can have.

    What is then left of the budget buys one rank more from the first layer on, so that bytes, and not steps of a rank
    everywhere, are what different choices are compared at.
    """
    limits = {site: candidate.limit for site, candidate in candidates.items()}

    def cost(rank: int) -> int:
        return sum(candidate.bytes(min(rank, limits[site])) for site, candidate in candidates.items())

    if cost(1) > budget:
        raise DeltaError(f"a budget of {budget:,} bytes is too small: one rank everywhere takes {cost(1):,} bytes")
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
        raise DeltaError("no layer has anything to gain: all gradients or changes of the free training are zero")
    site = min(useful, key=lambda site: useful[site].bytes(1))
    raise DeltaError(
        f"a budget of {budget:,} bytes is too small for one rank: the smallest, of {site!r}, "
        f"takes {useful[site].bytes(1):,} bytes"
    )
