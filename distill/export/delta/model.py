"""A delta file in memory, layer by layer: what algebra on files works on.

Three kinds of things are in a file. *Changes* (``delta/…``) are what algebra is about. The *head* and *moved*
batch-norm statistics are values, not changes: only ``interpolate`` computes with them, else they are kept or chosen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from augment.base import PluginError
from distill.deltas.algebra import Chain, Link
from distill.deltas.attach import attach_delta, deltas
from distill.deltas.base import DeltaError, DeltaTensors, WeightDelta
from distill.deltas.sites import Target, find_target
from distill.deltas.state import load_exactly
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaGroup, DeltaManifest, parts_of, read_delta, settings_of, write_delta_files
from distill.export.delta.packing import Format


@dataclass(frozen=True)
class DeltaFile:
    """A file whose every byte has been checked."""

    manifest: DeltaManifest
    layers: Mapping[str, Chain]
    """Layer → its deltas in their order, those of parts of it (``[q]``) among them."""
    values: Mapping[str, Tensor]
    """``head/…`` and ``moved/…`` by their names in the file."""

    @property
    def delta_bytes(self) -> int:
        """Bytes of the deltas' numbers as they are in memory: without head, names and manifest."""
        return sum(chain_bytes(chain) for chain in self.layers.values())


def open_delta(folder: Path, allow_plugins: bool = False) -> DeltaFile:
    """Read a delta folder.

    Raises:
        ExportError: damaged, or it holds a structural delta, whose effect on the logits is no sum of changes.
    """
    manifest, tensors = read_delta(folder)
    parts = parts_of(tensors, Path(folder))
    left = dict(parts.pop("delta"))
    layers: dict[str, Chain] = {}
    for group in sorted(manifest.deltas, key=lambda group: group.order):
        try:
            settings = settings_of(group, allow_plugins)
        except (DeltaError, PluginError, ValidationError) as error:
            raise ExportError(f"{folder}: {error}") from error
        if settings.component is None or not issubclass(settings.component, WeightDelta):
            raise ExportError(
                f"{folder}: {group.sites[0]!r} ({settings.type}) is structural; files of weight deltas can be combined"
            )
        for site in group.sites:
            start = f"{site}.{group.order}."
            own = {name: left.pop(name) for name in list(left) if name.startswith(start)}
            learned = DeltaTensors(settings, {name.removeprefix(start): tensor for name, tensor in own.items()})
            layers[layer_of(site)] = (*layers.get(layer_of(site), ()), Link(site, learned))
    if left:
        raise ExportError(f"{folder}: the manifest names no delta for {', '.join(list(left)[:5])}")
    return DeltaFile(manifest, layers, {f"{part}/{name}": t for part, own in parts.items() for name, t in own.items()})


def save_opened(
    folder: Path, file: DeltaFile, made_by: str, formats: Mapping[str, Format] | None = None
) -> DeltaManifest:
    """Write it as a delta folder. Figures that were measured on the files it was made from do not come along.

    Raises:
        ExportError: nothing is left to write.
    """
    groups: dict[str, DeltaGroup] = {}
    tensors = dict(file.values)
    for chain in file.layers.values():
        for order, link in enumerate(chain):
            settings = link.learned.settings.model_dump(mode="json", exclude={"sites", "exclude", "kinds"})
            key = f"{order} {settings}"
            group = groups.setdefault(key, DeltaGroup(order=order, settings=settings, sites=()))
            groups[key] = group.model_copy(update={"sites": (*group.sites, link.site)})
            tensors |= {f"delta/{link.site}.{order}.{name}": t for name, t in link.learned.tensors.items()}
    if not any(
        bool(t.any()) for chain in file.layers.values() for link in chain for t in link.learned.tensors.values()
    ):
        raise ExportError(f"{folder}: not written, the result of '{made_by}' changes nothing")
    about = {name: getattr(file.manifest, name) for name in ABOUT}
    in_order = tuple(sorted(groups.values(), key=lambda group: group.order))
    return write_delta_files(folder, tensors, formats, **about, deltas=in_order, made_by=made_by)


ABOUT = ("architecture", "model_args", "num_classes", "origin", "backbone", "labels", "preprocessing", "head")
"""Fields of a manifest that say what the deltas and the head belong to."""


def layer_of(site: str) -> str:
    return site.partition("[")[0]


def chain_bytes(chain: Chain) -> int:
    return sum(t.numel() * t.element_size() for link in chain for t in link.learned.tensors.values())


def places(*files: DeltaFile) -> Iterator[tuple[str, list[Chain]]]:
    """Site → each file's chain there; a layer of which one delta holds all and another a part is one place."""
    for layer in dict.fromkeys(layer for file in files for layer in file.layers):
        chains = [file.layers.get(layer, ()) for file in files]
        sites = dict.fromkeys(link.site for chain in chains for link in chain)
        if layer in sites:
            yield layer, chains
            continue
        for site in sites:
            yield site, [tuple(link for link in chain if link.site == site) for chain in chains]


def by_layer(chains: Mapping[str, Chain]) -> dict[str, Chain]:
    """Chains of places as chains of layers; empty ones go."""
    layers: dict[str, Chain] = {}
    for place, chain in chains.items():
        if chain:
            layers[layer_of(place)] = (*layers.get(layer_of(place), ()), *chain)
    return layers


def change_of(backbone: nn.Module, place: str, chain: Chain) -> dict[str, Tensor]:
    """What a chain adds to ``weight`` and ``bias`` of a place, in fp32; what it leaves alone is not in the answer.

    Args:
        backbone: its values matter only where :func:`needs_values`.
    """
    where = find_target(backbone, place)
    holder = nn.Module()
    holder.add_module("layer", copy.deepcopy(backbone.get_submodule(where.layer)))
    layer = holder.get_submodule("layer").requires_grad_(False)
    if not needs_values(chain):  # then nothing is rounded away
        for parameter in layer.parameters():
            parameter.zero_()
    try:
        with torch.random.fork_rng(devices=[]):
            for link in chain:
                at = find_target(backbone, link.site)
                attach_delta(holder, link.learned.settings, Target(link.site, "layer", at.rows))
        for site, link in zip(deltas(holder), chain, strict=True):
            load_exactly(site.delta.state_dict(), link.learned.tensors, f"delta of {link.site}")
    except DeltaError as error:
        raise ExportError(str(error)) from error
    change_of = {}
    with torch.no_grad():
        for name, changes in getattr(layer, "parametrizations", {}).items():
            change = getattr(layer, name) - changes.original
            change_of[name] = change if where.rows is None else change[slice(*where.rows)]
    return change_of


def needs_values(chain: Chain) -> bool:
    """Whether its change depends on the backbone's weights."""
    return not all(link.method.additive for link in chain)
