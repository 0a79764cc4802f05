"""Sparse: ``W' = W + M ⊙ U``, a fixed mask M and one learned number for each of its entries.

Stored are the places, ``index`` [entries] int32 into the flattened weight, rising, and ``values`` [entries], starting
at zero. Which entries those are is chosen once, before training, as the largest of a score:

==============  ====================================================================================================
``by``          score of an entry
==============  ====================================================================================================
``gradient``    \\|mean gradient\\| of the experiment's loss, after the head has learned for ``warm_up`` epochs
``fisher``      mean squared gradient at the same place (FISH mask)
``difference``  \\|W_free − W\\| after ``warm_up`` epochs in which all weights moved freely
``magnitude``   \\|W\\|; looks at no data. Also what a delta starts with where nothing has been chosen for it
==============  ====================================================================================================

``scope: layer`` gives each layer its share, ``density`` of its entries; ``scope: model`` takes the largest scores of
all layers together, up to half of a layer.

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
    """Places of the ``count`` largest scores of a layer, rising, int32."""
    return scores.flatten().topk(count).indices.sort().values.int()


def largest_of_all(scores: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Site → places of the largest scores of all layers together, at most half of a layer (less one)."""
    wanted = max(1, round(density * sum(score.numel() for score in scores.values())))
    capped = {site: score.flatten().topk(max(1, (score.numel() - 1) // 2)) for site, score in scores.items()}
    values = torch.cat([top.values for top in capped.values()])
    owners = torch.cat([torch.full_like(top.indices, n) for n, top in enumerate(capped.values())])
    counts = owners[values.topk(min(wanted, len(values))).indices].bincount(minlength=len(capped)).tolist()
    return {site: top.indices[:n].sort().values.int() for (site, top), n in zip(capped.items(), counts) if n}


class Sparse(WeightDelta):
    """``W' = W``, but for ``values`` added at ``index``.

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
        density: float = Field(0.01, gt=0, le=1, description="share of the weight's entries that change")
        entries: int | None = Field(None, ge=1, description="how many change in every layer; takes density's place")
        by: Literal["gradient", "fisher", "difference", "magnitude"] = Field("gradient", description="what counts")
        scope: Literal["layer", "model"] = Field("layer", description="whether scores are compared across layers")
        warm_up: int = Field(1, ge=0, description="epochs of the head (of all weights for difference) before looking")
        samples: int = Field(1024, ge=1, description="training images over which gradients are gathered")

    settings: Settings
    index: Tensor
    proportional_to = frozenset({"values"})

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        count = settings.entries or max(1, round(settings.density * weight.numel()))
        if count > weight.numel():
            raise DeltaError(f"has {weight.numel()} entries, of which {count} cannot change; lower entries")
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
        return DeltaInit(by_count(settings, index), {site: {"index": places} for site, places in index.items()})

    def forward(self, weight: Tensor) -> Tensor:
        added = weight.new_zeros(weight.numel()).index_add(0, self.index, self.values)
        return weight + added.view(weight.shape)  # a sum keeps the weight's memory format


def by_count(settings: DeltaSettings, index: Mapping[str, Tensor]) -> list[DeltaSettings]:
    """Settings of deltas with as many entries as ``index`` has, once for each number that occurs."""
    sites: dict[int, list[str]] = defaultdict(list)
    for site, places in index.items():
        sites[len(places)].append(site)
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
