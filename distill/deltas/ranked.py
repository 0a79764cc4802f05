"""Methods with a rank, and how their ranks are chosen from the data, layer by layer.

``ranks: {budget: 200KB}`` or ``ranks: {alpha: 0.9}`` in the place of ``rank: 8``. A layer's gains are
``I_l · window · σ²``: see :mod:`distill.deltas.allocate` for what they mean and how ranks are bought with them.

The singular values σ are those of a change E that training would make if it were free:

- ``spectrum: warm_up``: E = W_free − W after ``warm_up`` epochs in which every weight at the sites moves freely
  (HALRP);
- ``spectrum: gradient``: no free training; the head alone learns for ``warm_up`` epochs, then gradients are gathered
  over a pass without a step, and E = mean(g) / √mean(g²), entry by entry: the first step that Adam would make with the
  whole pass as its batch. (LoRA-GA takes the singular values of one batch's gradient; we normalize as Adam will.)

The importance I_l is measured where E was: ``fisher``, the mean over the weight of its squared gradient, averaged over
batches (HALRP); ``gradient``, the norm of the mean gradient; ``activation``, the mean square of the layer's input,
which makes a gain the expected change of the layer's output; ``feature_change``, the drop of the features' CKA when the
layer's change is taken back; ``none``, 1. ``uniform`` looks at nothing: the same rank everywhere.

Deviation from HALRP (arXiv 2311.15161): Fisher over augmented training batches, with the experiment's whole loss, not
over a validation split: its labels choose the epoch to keep, and nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.deltas.allocate import Candidate, by_share, same_everywhere, within_budget
from distill.deltas.base import (
    Calibration,
    CalibrationStats,
    DeltaError,
    DeltaInit,
    DeltaSettings,
    LayerRefused,
    WeightDelta,
    tensor_bytes,
)
from distill.deltas.rank_settings import Allocation, RankedSettings


class RankedDelta(WeightDelta):
    """A weight delta with a rank; ``prepare`` chooses it where the settings say so.

    Class attributes:
        least_rank: ``least`` where the settings leave it open; 0 leaves layers out.
        warm_starts: whether training by default goes on from the free warm-up.
    """

    Settings = RankedSettings
    least_rank: ClassVar[int] = 0
    warm_starts: ClassVar[bool] = False

    settings: RankedSettings

    def __init__(self, settings: RankedSettings, layer: nn.Module):
        super().__init__(settings, layer)
        if settings.ranks is not None:
            raise DeltaError("has no rank yet: ranks are chosen by training, from the data; or give a rank")

    @classmethod
    def change(cls, layer: nn.Module, free: Tensor) -> Tensor:
        """The matrices [blocks, m, n] that a rank approximates, so that the weight becomes ``free``."""
        groups: int = getattr(layer, "groups", 1)
        E: Tensor = free - layer.weight  # type: ignore[operator]
        return E.reshape(groups, len(E) // groups, -1)

    @classmethod
    def window(cls, layer: nn.Module) -> int:
        """Entries of the weight that one entry of ``change`` stands for."""
        return 1

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        """The delta's tensors with which the weight comes closest to ``free``: its singular value decomposition."""
        raise NotImplementedError

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """The budget pays for the ranks that are had in any case, and for one."""
        assert isinstance(settings, RankedSettings)
        if settings.ranks is not None and settings.ranks.bytes is not None:
            _bought(settings.ranks, _candidates(cls, settings, layers, _no_gains(layers)))

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        return isinstance(settings, RankedSettings) and settings.ranks is not None

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        assert isinstance(settings, RankedSettings) and settings.ranks is not None
        allocation = settings.ranks
        warm_start = cls.warm_starts if allocation.start is None else allocation.start == "warm_up"
        if warm_start and allocation.spectrum == "gradient":
            raise DeltaError(f"{settings.type} goes on from its warm-up: spectrum: warm_up, or start: identity")
        seen = None
        if allocation.importance != "uniform" or warm_start:
            seen = calibration.after(
                allocation.warm_up, "weights" if allocation.spectrum == "warm_up" else "head", allocation.warm_up_lr
            )
        ranks = choose_ranks(cls, settings, calibration.layers, seen)
        tensors: dict[str, Mapping[str, Tensor]] = {}
        if warm_start and seen is not None:
            layers, free = calibration.layers, seen.weights
            tensors = {site: cls.cut(layers[site], free[site], rank) for site, rank in ranks.items()}
        return DeltaInit(by_rank(settings, ranks), tensors, seen if warm_start else None)


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``U √Σ`` [g, m, rank] and ``√Σ Vᵀ`` [g, rank, n] of the largest singular values of every block [g, m, n]."""
    U, singular, Vt = torch.linalg.svd(change.detach().double(), full_matrices=False)
    root = singular[:, :rank].sqrt()
    left, right = U[:, :, :rank] * root[:, None, :], root[:, :, None] * Vt[:, :rank]
    return left.to(change.dtype), right.to(change.dtype)


def choose_ranks(
    method: type[RankedDelta], settings: RankedSettings, layers: Mapping[str, nn.Module], seen: CalibrationStats | None
) -> dict[str, int]:
    """Site → rank, at least 1; layers that get none are left out."""
    allocation = settings.ranks
    assert allocation is not None
    gains = _no_gains(layers) if seen is None else gains_of_ranks(method, allocation, layers, seen)
    ranks = _bought(allocation, _candidates(method, settings, layers, gains))
    return {site: rank for site, rank in ranks.items() if rank}


def _no_gains(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The same for every rank."""
    return {site: torch.ones(min(_matrix(layer))) for site, layer in layers.items()}


def _candidates(
    method: type[RankedDelta], settings: RankedSettings, layers: Mapping[str, nn.Module], gains: Mapping[str, Tensor]
) -> dict[str, Candidate]:
    """Every layer that has room for a rank."""
    allocation = settings.ranks
    assert allocation is not None
    candidates = {}
    least = method.least_rank if allocation.least is None else allocation.least
    for site, layer in layers.items():
        fixed, per_rank = _price(method, settings, layer)
        most = min(allocation.max_rank, _most(layer, fixed, per_rank))
        if most >= 1:
            candidates[site] = Candidate(gains[site], per_rank, fixed, min(least, most), most)
        elif settings.oversized == "error":
            raise DeltaError(f"{settings.type}: {site!r} is smaller than its delta of rank 1; leave it out")
    if not candidates:
        raise DeltaError(f"{settings.type}: every layer at its sites is smaller than its delta of rank 1")
    return candidates


def _bought(allocation: Allocation, candidates: Mapping[str, Candidate]) -> dict[str, int]:
    """Site → rank, 0 for layers that get none."""
    if allocation.bytes is None:
        assert allocation.alpha is not None
        return by_share(candidates, allocation.alpha)
    if allocation.importance == "uniform":
        return same_everywhere(candidates, allocation.bytes)
    return within_budget(candidates, allocation.bytes)


def by_rank(settings: RankedSettings, ranks: Mapping[str, int]) -> list[DeltaSettings]:
    """The same settings once for each rank that occurs, with the sites that have it."""
    sites: dict[int, list[str]] = defaultdict(list)
    for site, rank in ranks.items():
        sites[rank].append(site)
    chosen = {"ranks": None, "exclude": (), "kinds": None}
    return [
        settings.model_copy(update={**chosen, "rank": rank, "sites": tuple(sites[rank])})
        for rank in sorted(sites, reverse=True)
    ]


def gains_of_ranks(
    method: type[RankedDelta], allocation: Allocation, layers: Mapping[str, nn.Module], seen: CalibrationStats
) -> dict[str, Tensor]:
    """Site → what its ranks are worth, the first the most: the layer's importance times their singular values' squares.

    The singular values are those of what the free warm-up changed, or of ``−mean / √square`` of the gradients, the
    first step that a free training would make.
    """
    importance = _importance(allocation, layers, seen)
    gains = {}
    for site, layer in layers.items():
        if allocation.spectrum == "warm_up":
            free = seen.weights[site]
        else:
            gradients = seen.gradients(allocation.samples)[site]
            free = layer.weight - gradients.mean / (gradients.square.sqrt() + 1e-12)  # type: ignore[operator]
        E = method.change(layer, free).detach()
        # One rank is one direction in every block of a grouped conv.
        squares = torch.linalg.svdvals(E.double()).square().sum(0)
        gains[site] = importance[site] * method.window(layer) * squares
    return gains


def _importance(allocation: Allocation, layers: Mapping[str, nn.Module], seen: CalibrationStats) -> Mapping[str, float]:
    if allocation.importance == "none":
        return dict.fromkeys(layers, 1.0)
    if allocation.importance == "feature_change":
        return seen.feature_change(allocation.samples)
    gradients = seen.gradients(allocation.samples)
    if allocation.importance == "fisher":
        return {site: float(gradients[site].square.mean()) for site in layers}
    if allocation.importance == "gradient":
        return {site: float(gradients[site].mean.norm()) for site in layers}
    return {site: gradients[site].inputs for site in layers}


def _matrix(layer: nn.Module) -> tuple[int, int]:
    """Rows and columns of one block of a layer's weight."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    groups: int = getattr(layer, "groups", 1)
    return len(weight) // groups, weight[0].numel()


def _price(method: type[RankedDelta], settings: RankedSettings, layer: nn.Module) -> tuple[int, int]:
    """Bytes that a delta takes at rank 0, and for each rank; found by making two. Nothing fits a layer that refuses."""
    sizes = []
    for rank in (1, 2):
        try:
            delta = method(settings.model_copy(update={"ranks": None, "rank": rank}), layer)
        except LayerRefused:
            return tensor_bytes([layer.weight]), 1  # type: ignore[list-item]
        sizes.append(tensor_bytes(delta.state_dict().values()))
    return 2 * sizes[0] - sizes[1], sizes[1] - sizes[0]


def _most(layer: nn.Module, fixed: int, per_rank: int) -> int:
    """The highest rank that means anything and leaves the delta smaller than the layer."""
    own = tensor_bytes([layer.weight])  # type: ignore[list-item]
    return min((own - fixed - 1) // per_rank, *_matrix(layer))
