"""A delta file in memory, in the form in which a bank serves it."""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from augment.base import PluginError
from distill.deltas.attach import layer_at, new_delta
from distill.deltas.base import DeltaError, StructuralDelta, stored_bytes
from distill.deltas.sites import classifier_names, find_target, inside
from distill.deltas.state import delta_state, load_exactly, whole_state
from distill.deltas.statistics import REPLACED
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, put_on, settings_of
from distill.export.delta.per_image import (
    AtRows,
    Change,
    NoFormError,
    PerImageModel,
    change_of,
    tensors_of,
    whole_change,
)
from distill.export.manifest import Preprocessing
from distill.models.timm_models import new_classifier

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of a delta file, see :func:`distill.export.delta.io.parts_of`."""


@dataclass(frozen=True, eq=False)
class LoadedDelta:
    """A task's deltas and head. It stays as it is, also when its bank drops, replaces or evicts the task."""

    name: str
    """Of the task."""
    num_classes: int
    labels: tuple[str, ...]
    """Class names in the order of the logits; empty if the file has none."""
    preprocessing: Preprocessing
    """How an image becomes the model's input."""
    size: int
    """Bytes of its tensors."""
    changes: Mapping[str, Change]
    """Layer → what changes of it; empty with ``model``."""
    model: nn.Module | None = None
    """The network with these deltas, where they have no form in which images of several tasks can share a pass."""
    reason: str = ""
    """Why they have none."""


def digest(manifest: DeltaManifest) -> str:
    """SHA-256 of the content of a manifest, which has that of its tensors."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def load_form(
    name: str, manifest: DeltaManifest, parts: Parts, folder: Path, shared: PerImageModel, allow_plugins: bool
) -> LoadedDelta:
    """The deltas of a file in the form in which images of several tasks share a pass.

    Args:
        name: of the task.
        manifest: of the file.
        parts: its tensors.
        folder: of the file; errors name it.
        shared: the backbone, with classifiers of any width.
        allow_plugins: see :func:`distill.export.delta.io.load_delta`.

    Returns:
        The task.

    Raises:
        NoFormError: a delta, a head or a layer has no such form.
        ExportError: names or shapes do not fit, or the deltas change nothing.
    """
    try:
        heads = _heads(manifest, parts, shared)
        deltas_of, targets = _new_deltas(manifest, shared.model, heads, allow_plugins)
        load_exactly(targets, parts["delta"], "delta")
        if not manifest.unchanged and deltas_of and not _changes_something(deltas_of, shared.model, heads):
            raise DeltaError(f"all {sum(map(len, deltas_of.values()))} deltas leave the backbone unchanged")
        moved = _moved(parts["moved"], shared)
        changes: dict[str, Change] = {}
        for layer in dict.fromkeys([*deltas_of, *moved]):
            if layer not in heads:
                if layer not in shared.layers:
                    raise NoFormError(f"a change of {layer!r}, which does not see images one after the other")
                changes[layer] = change_of(shared.layers[layer], deltas_of.get(layer, ()), moved.get(layer))
        changes |= {head: whole_change(layer, deltas_of.get(head, ())) for head, layer in heads.items()}
    except NoFormError:
        raise
    except (DeltaError, PluginError, ValidationError) as error:
        raise ExportError(f"{folder}: {error}") from error
    size = stored_bytes({str(n): t for n, t in enumerate(t for change in changes.values() for t in tensors_of(change))})
    return LoadedDelta(name, manifest.num_classes, manifest.labels, manifest.preprocessing, size, changes)


def load_model(
    name: str,
    manifest: DeltaManifest,
    parts: Parts,
    folder: Path,
    backbone: nn.Module,
    allow_plugins: bool,
    reason: str = "",
) -> LoadedDelta:
    """A task that has a network of its own, which uses the tensors of the backbone.

    Args:
        name: of the task.
        manifest: of the file.
        parts: its tensors.
        folder: of the file; errors name it.
        backbone: without deltas.
        allow_plugins: see :func:`distill.export.delta.io.load_delta`.
        reason: why it has no form in which images of several tasks share a pass, if that is why it is loaded so.

    Returns:
        The task.
    """
    model = with_shared_tensors(backbone, {*parts["moved"], *classifier_names(backbone)})
    if model.num_classes != manifest.num_classes:
        with torch.random.fork_rng(devices=[]):  # the weights are those of the file's head
            new_classifier(model, manifest.num_classes)
    model.eval()
    put_on(model, manifest, parts, folder, allow_plugins=allow_plugins)
    own = {*parts["moved"], *classifier_names(model)}
    tensors = {key: tensor for key, tensor in whole_state(model).items() if inside(key, own)}
    size = stored_bytes(delta_state(model) | tensors)
    return LoadedDelta(name, manifest.num_classes, manifest.labels, manifest.preprocessing, size, {}, model, reason)


def with_shared_tensors(model: nn.Module, apart: Collection[str] = ()) -> nn.Module:
    """A copy of a network's modules which uses its tensors.

    Args:
        model: without deltas.
        apart: names of modules and tensors that are copied.

    Returns:
        The copy; its parameters are other objects with the same storage.
    """
    memo: dict[int, Tensor] = {}
    for key, parameter in model.named_parameters():
        if not inside(key, apart):
            memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for key, buffer in model.named_buffers():
        if not inside(key, apart):
            memo[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, memo)  # type: ignore[arg-type]


def _heads(manifest: DeltaManifest, parts: Parts, shared: PerImageModel) -> dict[str, nn.Linear]:
    """Name → the file's classifier in place of the network's."""
    if manifest.head is not None:
        raise NoFormError("a head of another network")
    heads = {}
    targets: dict[str, Tensor] = {}
    for name in shared.heads:
        if name not in shared.layers or not isinstance(layer := shared.layers[name], nn.Linear):
            raise NoFormError(f"the classifier {name!r}, which is no linear layer of pooled features,")
        head = nn.Linear(layer.in_features, manifest.num_classes, layer.bias is not None, device="meta")
        head = head.to(layer.weight.dtype).to_empty(device=layer.weight.device).requires_grad_(False)
        heads[name] = head
        targets |= {f"{name}.{key}": tensor for key, tensor in head.state_dict().items()}
    load_exactly(targets, parts["head"], "head")
    return heads


def _new_deltas(
    manifest: DeltaManifest, model: nn.Module, heads: Mapping[str, nn.Module], allow_plugins: bool
) -> tuple[dict[str, list[AtRows]], dict[str, Tensor]]:
    """Layer → its deltas in their order, and the tensors of all by their names in a delta file."""
    deltas_of: dict[str, list[AtRows]] = defaultdict(list)
    targets: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):  # initial values are overwritten
        for group in manifest.deltas:
            settings = settings_of(group, allow_plugins)
            if settings.component is not None and issubclass(settings.component, StructuralDelta):
                raise NoFormError(f"a {settings.type} delta")
            for site in group.sites:
                target = find_target(model, site)
                own = deltas_of[target.layer]
                delta = new_delta(settings, heads.get(target.layer) or layer_at(model, target), site).eval()
                targets |= {f"{site}.{len(own)}.{key}": tensor for key, tensor in delta.state_dict().items()}
                own.append((target.rows, delta))
    return deltas_of, targets


@torch.no_grad()
def _changes_something(deltas_of: Mapping[str, list[AtRows]], model: nn.Module, heads: Mapping[str, nn.Module]) -> bool:
    for name, deltas in deltas_of.items():
        layer = heads.get(name) or model.get_submodule(name)
        for rows, delta in deltas:
            for key, change in (("weight", delta), ("bias", delta.bias)):
                tensor = getattr(layer, key, None)
                if tensor is not None and (key == "weight" or delta.changes_bias):
                    tensor = tensor if rows is None else tensor[slice(*rows)]
                    if not torch.equal(change(tensor), tensor):
                        return True
    return False


def _moved(moved: Mapping[str, Tensor], shared: PerImageModel) -> dict[str, dict[str, Tensor]]:
    """Layer → the statistics that replace those of a batch norm."""
    if not moved:
        return {}
    buffers = dict(shared.model.named_buffers())
    load_exactly(
        {name: torch.empty_like(buffers[name]) for name in moved if name in buffers}, moved, "set of moved statistics"
    )
    statistics: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in moved.items():
        layer, _, buffer = name.rpartition(".")
        if buffer == "num_batches_tracked":
            continue  # it counts batches of training
        if buffer not in REPLACED:
            raise NoFormError(f"the buffer {name!r}, which is no statistics of a batch norm,")
        statistics[layer][buffer] = tensor.to(buffers[name].device)
    return statistics
