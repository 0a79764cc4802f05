"""What a model carries: every delta with its layer's kind and shape, its rank and its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from distill.deltas.attach import deltas
from distill.deltas.base import StructuralDelta, WeightDelta, frozen_weight, tensor_bytes
from distill.deltas.sites import find_target, layer_kind


@dataclass(frozen=True)
class Listed:
    """One delta on one site."""

    site: str
    type: str
    kind: str
    """The layer's kind; of a structural delta "structural"."""
    shape: tuple[int, ...]
    """Of the weight, or of the rows of it that the site names; empty for a structural delta."""
    rank: int | None
    """None for a method that has none."""
    bytes: int
    """As the delta file stores it."""
    layer_bytes: int
    """Of the frozen weight, or of its rows; 0 for a structural delta."""


def inventory(model: nn.Module) -> list[Listed]:
    """All deltas of a model, in its order."""
    return [_listed(model, site.name, site.delta) for site in deltas(model)]


def _listed(model: nn.Module, name: str, delta: WeightDelta | StructuralDelta) -> Listed:
    size, rank = tensor_bytes(delta.state_dict().values()), getattr(delta.settings, "rank", None)
    if isinstance(delta, StructuralDelta):
        return Listed(name, delta.settings.type, "structural", (), rank, size, 0)
    place = find_target(model, name)
    layer = model.get_submodule(place.layer)
    weight = frozen_weight(layer)
    if place.rows is not None:
        weight = weight[slice(*place.rows)]
    kind = layer_kind(layer) or "other"
    return Listed(name, delta.settings.type, kind, tuple(weight.shape), rank, size, tensor_bytes([weight]))


def block_of(site: str) -> str:
    """The block that a layer belongs to, for tables of a few lines: ``blocks.3.attn.qkv`` → ``blocks.3``."""
    parts = site.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
