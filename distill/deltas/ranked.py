"""Methods with a rank; each layer's rank can be chosen from the data.

``ranks: {budget: 200KB}`` or ``ranks: {alpha: 0.9}`` replaces ``rank: 8``. The gains of a layer's ranks are
``I_l · window · σ²``; :mod:`distill.deltas.allocate` derives them and chooses ranks from them.

The singular values σ are those of E, an estimate of the change that training all entries of the weight would make:

- ``spectrum: warm_up``: E = W_free − W, with W_free the weights after ``warm_up`` epochs in which every weight at the
  sites is trained (HALRP);
- ``spectrum: gradient``: the head alone is trained for ``warm_up`` epochs, then gradients g are averaged over one pass
  without updates, and E = −mean(g) / √mean(g²), entry by entry: the first step of Adam on the whole pass as one batch.
  (LoRA-GA takes the singular values of one batch's gradient; here it is normalized as by Adam.)

The importance I_l is measured at the same weights as E: ``fisher``, the mean over the weight of its squared gradient,
averaged over batches (HALRP); ``gradient``, the norm of the mean gradient; ``activation``, the mean square of the
layer's input, which makes a gain the expected change of the layer's output; ``feature_change``, 1 − CKA of the pooled
features before and after the layer's weight is reset to W; ``none``, 1. ``uniform`` measures nothing and gives all
layers one rank.

Deviation from HALRP (arXiv 2311.15161): the Fisher information is that of the experiment's whole loss on augmented
training batches, not on a validation split, whose labels are used only to choose the best epoch.
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
    """A weight delta with a rank, which ``prepare`` chooses if the settings have ``ranks``.

    Class attributes:
        least_rank: default of ``ranks.least``; with 0, layers may get no delta.
        warm_starts: default of ``ranks.start``: whether training starts from the warm-up's weights, cut to the ranks.
    """

    Settings = RankedSettings
    least_rank: ClassVar[int] = 0
    warm_starts: ClassVar[bool] = False

    settings: RankedSettings

    def __init__(self, settings: RankedSettings, layer: nn.Module):
        super().__init__(settings, layer)
        if settings.ranks is not None:
            raise DeltaError("has no rank yet: training chooses ranks from the data; attach it with a rank")

    @classmethod
    def change(cls, layer: nn.Module, free: Tensor) -> Tensor:
        """The matrices [blocks, m, n] that the ranks approximate, to change the layer's weight into ``free``."""
        groups: int = getattr(layer, "groups", 1)
        E: Tensor = free - layer.weight  # type: ignore[operator]
        return E.reshape(groups, len(E) // groups, -1)

    @classmethod
    def window(cls, layer: nn.Module) -> int:
        """Number of entries of the weight that one entry of ``change`` is added to."""
        return 1

    @classmethod
    def cut(cls, layer: nn.Module, free: Tensor, rank: int) -> dict[str, Tensor]:
        """The delta's tensors for which the changed weight approximates ``free``, by a singular value decomposition.

        Args:
            layer: before training.
            free: W_free, the layer's weight after the warm-up, of its shape.
            rank: of the delta.

        Returns:
            Name in the delta's ``state_dict`` → tensor.
        """
        raise NotImplementedError

    @classmethod
    def check(cls, settings: DeltaSettings, layers: Mapping[str, nn.Module]) -> None:
        """Raise ``DeltaError`` if the budget is too small for one rank, or for ``least`` ranks in every layer."""
        assert isinstance(settings, RankedSettings)
        if settings.ranks is not None and settings.ranks.bytes is not None:
            _allocate(settings.ranks, _candidates(cls, settings, layers, _no_gains(layers)))

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        return isinstance(settings, RankedSettings) and settings.ranks is not None

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        assert isinstance(settings, RankedSettings) and settings.ranks is not None
        allocation = settings.ranks
        warm_start = cls.warm_starts if allocation.start is None else allocation.start == "warm_up"
        if warm_start and allocation.spectrum == "gradient":
            raise DeltaError(f"{settings.type} starts from its warm-up: set spectrum: warm_up, or start: identity")
        stats = None
        if allocation.importance != "uniform" or warm_start:
            stats = calibration.after(
                allocation.warm_up, "weights" if allocation.spectrum == "warm_up" else "head", allocation.warm_up_lr
            )
        ranks = choose_ranks(cls, settings, calibration.layers, stats)
        tensors: dict[str, Mapping[str, Tensor]] = {}
        if warm_start and stats is not None:
            layers, free = calibration.layers, stats.weights
            tensors = {site: cls.cut(layers[site], free[site], rank) for site, rank in ranks.items()}
        return DeltaInit(by_rank(settings, ranks), tensors, stats if warm_start else None)


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``U √Σ`` [g, m, rank] and ``√Σ Vᵀ`` [g, rank, n] of the largest singular values of ``change`` [g, m, n]."""
    U, singular, Vt = torch.linalg.svd(change.detach().double(), full_matrices=False)
    root = singular[:, :rank].sqrt()
    left, right = U[:, :, :rank] * root[:, None, :], root[:, :, None] * Vt[:, :rank]
    return left.to(change.dtype), right.to(change.dtype)


def choose_ranks(
    method: type[RankedDelta], settings: RankedSettings, layers: Mapping[str, nn.Module], stats: CalibrationStats | None
) -> dict[str, int]:
    """Choose a rank for each layer.

    Args:
        method: of the deltas.
        settings: with ``ranks``.
        layers: site → layer before training.
        stats: measurements after the warm-up; None: all gains are equal.

    Returns:
        Site → rank, at least 1; without layers that get no delta.

    Raises:
        DeltaError: the budget is too small, or no layer has room for a rank.
    """
    allocation = settings.ranks
    assert allocation is not None
    gains = _no_gains(layers) if stats is None else gains_of_ranks(method, allocation, layers, stats)
    ranks = _allocate(allocation, _candidates(method, settings, layers, gains))
    return {site: rank for site, rank in ranks.items() if rank}


def _no_gains(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Equal gains for every rank."""
    return {site: torch.ones(min(_matrix(layer))) for site, layer in layers.items()}


def _candidates(
    method: type[RankedDelta], settings: RankedSettings, layers: Mapping[str, nn.Module], gains: Mapping[str, Tensor]
) -> dict[str, Candidate]:
    """The layers for which a delta of rank 1 is smaller than the weight."""
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
            raise DeltaError(f"{settings.type}: {site!r} is no larger than its delta of rank 1; leave it out")
    if not candidates:
        raise DeltaError(f"{settings.type}: no layer at its sites is larger than its delta of rank 1")
    return candidates


def _allocate(allocation: Allocation, candidates: Mapping[str, Candidate]) -> dict[str, int]:
    """Site → rank, 0 for layers that get no delta."""
    if allocation.bytes is None:
        assert allocation.alpha is not None
        return by_share(candidates, allocation.alpha)
    if allocation.importance == "uniform":
        return same_everywhere(candidates, allocation.bytes)
    return within_budget(candidates, allocation.bytes)


def by_rank(settings: RankedSettings, ranks: Mapping[str, int]) -> list[DeltaSettings]:
    """The settings, once for each rank that occurs, with the sites of that rank."""
    sites: dict[int, list[str]] = defaultdict(list)
    for site, rank in ranks.items():
        sites[rank].append(site)
    chosen = {"ranks": None, "exclude": (), "kinds": None}
    return [
        settings.model_copy(update={**chosen, "rank": rank, "sites": tuple(sites[rank])})
        for rank in sorted(sites, reverse=True)
    ]


def gains_of_ranks(
    method: type[RankedDelta], allocation: Allocation, layers: Mapping[str, nn.Module], stats: CalibrationStats
) -> dict[str, Tensor]:
    """The gains of each layer's ranks: ``I_l · window · σ²``, see the top of this module.

    Args:
        method: of the deltas; its ``change`` gives the matrices whose singular values are σ.
        allocation: ``importance``, ``spectrum`` and ``samples``.
        layers: site → layer before training.
        stats: measurements after the warm-up.

    Returns:
        Site → gains [k], falling, in fp64.
    """
    importance = _importance(allocation, layers, stats)
    gains = {}
    for site, layer in layers.items():
        if allocation.spectrum == "warm_up":
            free = stats.weights[site]
        else:
            gradients = stats.gradients(allocation.samples)[site]
            free = layer.weight - gradients.mean / (gradients.square.sqrt() + 1e-12)  # type: ignore[operator]
        E = method.change(layer, free).detach()
        # A rank of a grouped conv has one singular value in each of its blocks.
        squares = torch.linalg.svdvals(E.double()).square().sum(0)
        gains[site] = importance[site] * method.window(layer) * squares
    return gains


def _importance(
    allocation: Allocation, layers: Mapping[str, nn.Module], stats: CalibrationStats
) -> Mapping[str, float]:
    if allocation.importance == "none":
        return dict.fromkeys(layers, 1.0)
    if allocation.importance == "feature_change":
        return stats.feature_change(allocation.samples)
    gradients = stats.gradients(allocation.samples)
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
    """Bytes of a delta at rank 0, and per rank, from two instances; more than the layer's if the layer is refused."""
    sizes = []
    for rank in (1, 2):
        try:
            delta = method(settings.model_copy(update={"ranks": None, "rank": rank}), layer)
        except LayerRefused:
            return tensor_bytes([layer.weight]), 1  # type: ignore[list-item]
        sizes.append(tensor_bytes(delta.state_dict().values()))
    return 2 * sizes[0] - sizes[1], sizes[1] - sizes[0]


def _most(layer: nn.Module, fixed: int, per_rank: int) -> int:
    """The largest rank for which the delta is smaller than the weight, at most the rank of the weight's matrix."""
    own = tensor_bytes([layer.weight])  # type: ignore[list-item]
    return min((own - fixed - 1) // per_rank, *_matrix(layer))
