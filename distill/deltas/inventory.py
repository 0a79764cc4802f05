"""A list of a model's deltas, each with its layer's kind and shape, its rank and its bytes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from distill.deltas.attach import deltas
from distill.deltas.base import Delta, StructuralDelta, frozen, frozen_weight, tensor_bytes
from distill.deltas.sites import find_target, layer_kind
from distill.deltas.statistics import REPLACED


@dataclass(frozen=True)
class Listed:
    """One delta on one site."""

    site: str
    type: str
    kind: str
    """The layer's kind; "structural" for a structural delta."""
    shape: tuple[int, ...]
    """Shape of the weight, or of the rows that the site names; empty for a structural delta."""
    rank: int | None
    """None for a method without ranks."""
    bytes: int
    """Bytes of the delta's tensors, as the delta file stores them."""
    layer_bytes: int
    """Bytes of the frozen layer: weight, bias and running statistics, or these rows; 0 for a structural delta."""


def inventory(model: nn.Module) -> list[Listed]:
    """All deltas of a model, layer by layer in its order."""
    return [_listed(model, site.name, site.delta) for site in deltas(model)]


def _listed(model: nn.Module, name: str, delta: Delta) -> Listed:
    size, rank = tensor_bytes(delta.state_dict().values()), getattr(delta.settings, "rank", None)
    if isinstance(delta, StructuralDelta):
        return Listed(name, delta.settings.type, "structural", (), rank, size, 0)
    target = find_target(model, name)
    layer = model.get_submodule(target.layer)
    others = [frozen(layer, "bias"), *(getattr(layer, of_norm, None) for of_norm in REPLACED)]
    tensors = [frozen_weight(layer), *(tensor for tensor in others if tensor is not None)]
    if target.rows is not None:
        tensors = [tensor[slice(*target.rows)] for tensor in tensors]
    kind = layer_kind(layer) or "other"
    return Listed(name, delta.settings.type, kind, tuple(tensors[0].shape), rank, size, tensor_bytes(tensors))


def block_of(site: str) -> str:
    """The block that a layer belongs to, for tables of a few lines: ``blocks.3.attn.qkv`` → ``blocks.3``."""
    parts = site.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
