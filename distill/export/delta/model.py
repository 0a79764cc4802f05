"""A delta file in memory, layer by layer, for the algebra of delta files.

A file holds *changes* (``delta/…``), which the algebra computes with, and *values*: the head and moved batch-norm
statistics. Only ``interpolate`` computes with values; the other operations keep them or take those of one file.
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
    """The content of a delta file, after its checksums have been verified."""

    manifest: DeltaManifest
    layers: Mapping[str, Chain]
    """Layer → its deltas in order, including those of slices of it (``[q]``)."""
    values: Mapping[str, Tensor]
    """``head/…`` and ``moved/…`` by their names in the file."""

    @property
    def delta_bytes(self) -> int:
        """Bytes of the deltas' tensors in memory, without head, names and manifest."""
        return sum(chain_bytes(chain) for chain in self.layers.values())


def open_delta(folder: Path, allow_plugins: bool = False) -> DeltaFile:
    """Read a delta folder.

    Raises:
        ExportError: the files are damaged, or hold a structural delta, which does not change a weight.
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
                f"{folder}: {settings.type} at {', '.join(settings.sites)} is structural; files of weight deltas alone "
                "can be combined, or become a peft adapter"
            )
        for site in group.sites:
            prefix = f"{site}.{group.order}."
            own = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
            learned = DeltaTensors(settings, {name.removeprefix(prefix): tensor for name, tensor in own.items()})
            layers[layer_of(site)] = (*layers.get(layer_of(site), ()), Link(site, learned))
    if left:
        raise ExportError(f"{folder}: the manifest names no delta for {', '.join(list(left)[:5])}")
    return DeltaFile(manifest, layers, {f"{part}/{name}": t for part, own in parts.items() for name, t in own.items()})


def save_delta_file(
    folder: Path, file: DeltaFile, made_by: str, formats: Mapping[str, Format] | None = None
) -> DeltaManifest:
    """Write a delta folder. Results that were measured on the files it was made from are left out.

    Args:
        folder: where to write.
        file: the content.
        made_by: the operation, with the SHA-256 of the files it was made from.
        formats: tensor name → format, for tensors that are stored in fewer bytes; None: all as they are.

    Returns:
        The content of ``delta.json``.

    Raises:
        ExportError: every delta is zero; nothing is written.
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
"""Fields of a manifest that the result of an operation takes from one of its files."""


def layer_of(site: str) -> str:
    """The layer of a site: ``blocks.0.attn.qkv[q]`` → ``blocks.0.attn.qkv``."""
    return site.partition("[")[0]


def chain_bytes(chain: Chain) -> int:
    """Bytes of a chain's tensors in memory."""
    return sum(t.numel() * t.element_size() for link in chain for t in link.learned.tensors.values())


def by_site(*files: DeltaFile) -> Iterator[tuple[str, list[Chain]]]:
    """Each site with every file's chain there, empty where a file has none.

    If some delta is on a whole layer, the layer is one site, and deltas on slices of it belong to its chain.
    """
    for layer in dict.fromkeys(layer for file in files for layer in file.layers):
        chains = [file.layers.get(layer, ()) for file in files]
        sites = dict.fromkeys(link.site for chain in chains for link in chain)
        if layer in sites:
            yield layer, chains
            continue
        for site in sites:
            yield site, [tuple(link for link in chain if link.site == site) for chain in chains]


def by_layer(chains: Mapping[str, Chain]) -> dict[str, Chain]:
    """Join chains of sites into chains of layers, without the empty ones."""
    layers: dict[str, Chain] = {}
    for site, chain in chains.items():
        if chain:
            layers[layer_of(site)] = (*layers.get(layer_of(site), ()), *chain)
    return layers


def change_of(backbone: nn.Module, site: str, chain: Chain) -> dict[str, Tensor]:
    """The change that a chain makes to the weight and the bias of a site.

    Args:
        backbone: a model of the files' architecture; its values matter only where :func:`needs_values`.
        site: a layer, or a slice of one.
        chain: the deltas there.

    Returns:
        ``weight`` and ``bias`` → what is added, fp32, in the parameter's shape; without a parameter that no delta
        changes.
    """
    target = find_target(backbone, site)
    holder = nn.Module()
    holder.add_module("layer", copy.deepcopy(backbone.get_submodule(target.layer)))
    layer = holder.get_submodule("layer").requires_grad_(False)
    if not needs_values(chain):  # with zeros, the change is not rounded
        for parameter in layer.parameters():
            parameter.zero_()
    try:
        with torch.random.fork_rng(devices=[]):
            for link in chain:
                rows = find_target(backbone, link.site).rows
                attach_delta(holder, link.learned.settings, Target(link.site, "layer", rows))
        for attached, link in zip(deltas(holder), chain, strict=True):
            load_exactly(attached.delta.state_dict(), link.learned.tensors, f"delta of {link.site}")
    except DeltaError as error:
        raise ExportError(str(error)) from error
    changes = {}
    with torch.no_grad():
        for name, parametrized in getattr(layer, "parametrizations", {}).items():
            change = getattr(layer, name) - parametrized.original
            changes[name] = change if target.rows is None else change[slice(*target.rows)]
    return changes


def needs_values(chain: Chain) -> bool:
    """Whether a chain's change depends on the backbone's weights."""
    return not all(link.method.additive for link in chain)
