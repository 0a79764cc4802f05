"""Sparse: ``W' = W + M ⊙ U``, a fixed mask M and one learned value for each of its entries.

``index`` [entries] int32 holds the entries' indices in the flattened weight, ascending; ``values`` [entries] is
initialized to zero. The entries are chosen once, before training, as those with the largest score:

==============  ====================================================================================================
``by``          score of an entry
==============  ====================================================================================================
``gradient``    \\|mean gradient\\| of the experiment's loss, after a warm-up of the head for ``warm_up`` epochs
``fisher``      mean squared gradient, after the same warm-up (FISH mask)
``difference``  \\|W_free − W\\|, W_free the weight after a warm-up of all weights for ``warm_up`` epochs
``magnitude``   \\|W\\|; uses no data. Also the initial choice of a delta for which ``prepare`` has not run
==============  ====================================================================================================

``scope: layer`` chooses the fraction ``density`` of each layer's entries; ``scope: model`` chooses the largest scores
of all layers together, at most half of a layer.

Papers: Sung et al., FISH mask, arXiv 2111.09839; Ansell et al., LT-SFT (by difference), arXiv 2110.07560.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.deltas.base import Calibration, DeltaError, DeltaInit, DeltaSettings, SizedSettings, WeightDelta


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest scores of a layer, flattened: [count] int32, ascending."""
    return scores.flatten().topk(count).indices.sort().values.int()


def largest_of_all(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Site → indices of the largest scores of all layers together, less than half of each layer."""
    wanted = max(1, round(density * sum(score.numel() for score in scores.values())))
    capped = {site: score.flatten().topk(max(1, (score.numel() - 1) // 2)) for site, score in scores.items()}
    values = torch.cat([top.values for top in capped.values()])
    layer_of = torch.cat([torch.full_like(top.indices, n) for n, top in enumerate(capped.values())])
    counts = layer_of[values.topk(min(wanted, len(values))).indices].bincount(minlength=len(capped)).tolist()
    return {site: top.indices[:n].sort().values.int() for (site, top), n in zip(capped.items(), counts) if n}


class Sparse(WeightDelta):
    """``W' = W`` with ``values`` added at ``index``.

    >>> import torch
    >>> from distill.deltas.attach import attach
    >>> from distill.deltas.sparse import Sparse
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16))
    >>> before = model[0].weight.clone()
    >>> (site,) = attach(model, [Sparse.Settings(density=0.05)])
    >>> {name: list(p.shape) for name, p in site.delta.named_parameters()}
    {'values': [26]}
    >>> torch.equal(model[0].weight, before)
    True
    """

    class Settings(SizedSettings):
        type: Literal["sparse"] = "sparse"
        density: float = Field(0.01, gt=0, le=1, description="fraction of the weight's entries that are changed")
        entries: int | None = Field(
            None, ge=1, description="number of entries that are changed in every layer; replaces density"
        )
        by: Literal["gradient", "fisher", "difference", "magnitude"] = Field(
            "gradient", description="score of an entry"
        )
        scope: Literal["layer", "model"] = Field(
            "layer", description="compare scores within each layer, or across all layers"
        )
        warm_up: int = Field(
            1,
            ge=0,
            description="epochs of training before scores are computed: of the head, for difference of all weights",
        )
        samples: int = Field(1024, ge=1, description="training images over which gradients are averaged")

    settings: Settings
    index: Tensor
    proportional_to = frozenset({"values"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        count = settings.entries or max(1, round(settings.density * weight.numel()))
        if count > weight.numel():
            raise DeltaError(f"has {weight.numel()} entries, fewer than entries: {count}; lower it")
        self.register_buffer("index", largest(weight.detach().abs(), count))
        self.values = nn.Parameter(weight.new_zeros(count))

    @classmethod
    def prepares(cls, settings: DeltaSettings) -> bool:
        return isinstance(settings, Sparse.Settings) and (settings.by, settings.scope) != ("magnitude", "layer")

    @classmethod
    def prepare(cls, settings: DeltaSettings, calibration: Calibration) -> DeltaInit:
        assert isinstance(settings, Sparse.Settings)
        scores = _scores(settings, calibration)
        if settings.scope == "model":
            index = largest_of_all(scores, settings.density)
        else:
            index = {
                site: largest(score, settings.entries or max(1, round(settings.density * score.numel())))
                for site, score in scores.items()
            }
        return DeltaInit(by_count(settings, index), {site: {"index": indices} for site, indices in index.items()})

    def forward(self, weight: Tensor) -> Tensor:
        added = weight.new_zeros(weight.numel()).index_add(0, self.index, self.values)
        return weight + added.view(weight.shape)  # a sum keeps the weight's memory format


def by_count(settings: DeltaSettings, index: Mapping[str, Tensor]) -> list[DeltaSettings]:
    """Settings for the sites of ``index``, one entry for each number of indices that occurs."""
    sites: dict[int, list[str]] = defaultdict(list)
    for site, indices in index.items():
        sites[len(indices)].append(site)
    chosen = {"exclude": (), "kinds": None}
    return [settings.model_copy(update={**chosen, "entries": n, "sites": tuple(sites[n])}) for n in sorted(sites)]


def _scores(settings: Sparse.Settings, calibration: Calibration) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {site: layer.weight.detach() for site, layer in calibration.layers.items()}  # type: ignore
    if settings.by == "magnitude":
        return {site: weight.abs() for site, weight in weights.items()}
    if settings.by == "difference":
        free = calibration.after(settings.warm_up, "weights").weights
        return {site: (free[site] - weight).abs() for site, weight in weights.items()}
    gradients = calibration.after(settings.warm_up, "head").gradients(settings.samples)
    if settings.by == "fisher":
        return {site: gradients[site].square for site in weights}
    return {site: gradients[site].mean.abs() for site in weights}
