"""The delta file: a student's deltas and head, and the SHA-256 of every tensor of the backbone that they belong to.

A folder with ``delta.safetensors`` (``delta/…``, ``head/…``, and ``moved/…``: batch-norm statistics that moved) and
``delta.json``, a :class:`DeltaManifest`. Reading never unpickles. The checksums of
both files are verified before they are parsed, and the backbone, shapes and names before any tensor is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn

from augment.base import PluginError, Registry, Settings, is_import_path
from distill.deltas.attach import attach_delta, attach_structural, deltas, freeze
from distill.deltas.base import DeltaError, DeltaSettings, StructuralDelta
from distill.deltas.sites import classifier_names, find_target
from distill.deltas.state import backbone_state, delta_state, head_state, load_exactly, replaced_state
from distill.deltas.statistics import Statistics
from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.delta.packing import Format, pack, unpack
from distill.export.manifest import Preprocessing, Result, model_arguments
from distill.files import write_atomic
from distill.models.fingerprint import Fingerprint, differences, fingerprint
from distill.models.hub import local_folder
from distill.models.reused_head import reuse_head, reused
from distill.models.settings import ReusedHead
from distill.models.weights import NetworkError

TENSORS, MANIFEST = "delta.safetensors", "delta.json"


class DeltaGroup(Settings):
    """Deltas with equal settings and the same order on their layers; or one structural delta, in a group of its own."""

    order: int
    settings: dict[str, Any]
    sites: tuple[str, ...]


class DeltaManifest(Checksummed):
    """The content of ``delta.json``."""

    schema_version: Literal[1] = 1
    architecture: str
    """timm's name, e.g. ``tf_efficientnet_lite0``."""
    model_args: dict[str, Any]
    num_classes: int
    origin: str
    """Where the backbone's weights came from, e.g. ``resnet50.a1_in1k``."""
    backbone: Fingerprint
    deltas: tuple[DeltaGroup, ...]
    sha256: str
    """Of ``delta.safetensors``."""
    labels: tuple[str, ...]
    """Class names in the order of the logits; empty if there are none."""
    preprocessing: Preprocessing
    results: tuple[Result, ...] = ()
    packed: dict[str, str] = Field(default_factory=dict)
    """Tensors that are stored in fewer bytes, see :mod:`distill.export.delta.packing`."""
    head: ReusedHead | None = None
    """A head that replaces the architecture's; its tensors are under ``head/``."""
    unchanged: bool = False
    """Whether the deltas may be the identity; otherwise that is an error when the file is read."""
    made_by: str = ""
    """The operation that made this file from others, named by their SHA-256; empty for the result of training."""


def save_delta(
    folder: Path,
    model: nn.Module,
    backbone: Fingerprint,
    *,
    origin: str,
    labels: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    results: Sequence[Result] = (),
    model_args: dict[str, Any] | None = None,
    unchanged: bool = False,
    made_by: str = "",
    stored: Mapping[str, Format] | None = None,
) -> DeltaManifest:
    """Write a trained student's deltas and head.

    Args:
        folder: where to write ``delta.safetensors`` and ``delta.json``; it is made if it does not exist.
        model: a timm model with deltas attached; its classifier is the head. Without deltas it is a linear probe.
        backbone: ``fingerprint(backbone_state(model, classifier_names(model)))`` from before training.
        origin: the backbone's pretrained tag or file.
        labels: class names in the order of the logits; empty if there are none.
        preprocessing: how an image becomes the model's input; None: as the model declares.
        results: measured numbers.
        model_args: arguments of ``timm.create_model``; None: what timm recorded on the model.
        unchanged: whether deltas may be the identity, as after training without a gradient.
        made_by: the operation that made it from another file, see :class:`DeltaManifest`.
        stored: "deltas" and "head" → format of their fp32 tensors, see :mod:`distill.export.delta.packing`; None or
            left out: fp32. ``Student.stored`` are the formats that training prepared for.

    Returns:
        The content of ``delta.json``.

    Raises:
        ExportError: a backbone weight changed although it is frozen, every delta is still the identity, or there is
            not one label for each class.
    """
    folder = Path(folder)
    head = classifier_names(model)
    now = backbone_state(model, head)
    moved = _moved(model, backbone, fingerprint(now))
    replaced = {site.key for site in deltas(model) if isinstance(site.delta, Statistics)}
    learned = {name: own for name, own in delta_state(model).items() if name.rpartition(".")[0] not in replaced}
    tensors = {f"delta/{name}": tensor for name, tensor in learned.items()}
    tensors |= {f"head/{name}": tensor for name, tensor in head_state(model, head).items()}
    tensors |= {f"moved/{name}": now[name] for name in moved}
    tensors |= {f"moved/{name}": own for name, own in replaced_state(model).items() if not torch.equal(own, now[name])}
    if not unchanged:
        _check_learned(model, folder)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    num_classes: int = model.num_classes  # type: ignore[assignment]
    _check_labels(labels, num_classes)
    parts: dict[str, Format | None] = {"delta": (stored or {}).get("deltas"), "head": (stored or {}).get("head")}
    formats = {
        name: form
        for name, t in tensors.items()
        if t.dtype == torch.float32 and (form := parts.get(name.partition("/")[0]))
    }
    return write_delta_files(
        folder,
        tensors,
        formats,
        architecture=config["architecture"],
        model_args=model_arguments(model, model_args),
        num_classes=num_classes,
        origin=origin,
        backbone=backbone,
        deltas=_groups(model),
        labels=tuple(labels),
        preprocessing=preprocessing or Preprocessing.of(model),
        results=tuple(results),
        head=reused(model),
        unchanged=unchanged,
        made_by=made_by,
    )


def write_delta_files(
    folder: Path, tensors: Mapping[str, Tensor], formats: Mapping[str, Format] | None = None, **about: Any
) -> DeltaManifest:
    """Write the two files of a delta folder from tensors.

    Args:
        folder: where to write; it is made if it does not exist.
        tensors: by their names in the file.
        formats: tensor name → format, for tensors that are stored in fewer bytes; None: all as they are.
        about: the other fields of :class:`DeltaManifest`.

    Returns:
        The content of ``delta.json``.
    """
    stored, packed = pack({name: tensor.detach().cpu() for name, tensor in tensors.items()}, formats or {})
    data = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in stored.items()})
    manifest = DeltaManifest(sha256=write_atomic(folder / TENSORS, data), packed=packed, **about)
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> DeltaManifest:
    """Read and check the manifest of a delta folder, without its tensors.

    Raises:
        ExportError: it is absent, truncated, or differs in any bit from what was written.
    """
    return read_checksummed(local_folder(folder) / MANIFEST, DeltaManifest)


def read_delta(folder: Path) -> tuple[DeltaManifest, dict[str, Tensor]]:
    """Read and check a delta folder: its manifest, and its tensors by their names in the file.

    Raises:
        ExportError: a file is absent, truncated, or differs in any bit from what was written.
    """
    folder = local_folder(folder)
    manifest = read_manifest(folder)
    return manifest, unpack(safetensors.torch.load(read_checked(folder, TENSORS, manifest.sha256)), manifest.packed)


def load_delta(folder: Path, backbone: nn.Module, *, allow_plugins: bool = False) -> nn.Module:
    """Put the deltas and the head of a delta folder on a copy of their backbone.

    Args:
        folder: holds ``delta.safetensors`` and ``delta.json``.
        backbone: the timm model that the deltas were learned on, with as many classes; its head's values do not matter.
        allow_plugins: import delta classes outside this package that the manifest names (``package.module:Class``).
            Importing runs code: allow it only for files that you trust.

    Returns:
        The copy: frozen, in eval mode, deltas not merged. ``backbone`` itself is never changed.

    Raises:
        ExportError: damaged files, another backbone (tensors listed), names or shapes that do not fit, or deltas that
            change nothing.
    """
    folder = local_folder(folder)
    manifest, tensors = read_delta(folder)
    check_backbone(manifest, backbone, folder)
    model = copy.deepcopy(backbone).eval()
    put_on(model, manifest, parts_of(tensors, folder), folder, allow_plugins=allow_plugins)
    return model


def put_on(
    model: nn.Module,
    manifest: DeltaManifest,
    parts: Mapping[str, Mapping[str, Tensor]],
    folder: Path,
    *,
    allow_plugins: bool = False,
) -> None:
    """Freeze a backbone and put deltas, head and moved statistics of a delta file on it, in place.

    Args:
        model: the backbone of the file, with as many classes.
        manifest: of the file.
        parts: its tensors, see :func:`parts_of`.
        folder: of the file; errors name it.
        allow_plugins: see :func:`load_delta`.

    Raises:
        ExportError: names or shapes do not fit, or the deltas change nothing.
    """
    try:
        if manifest.head is not None:
            reuse_head(model, manifest.head)
        head = classifier_names(model)
        load_exactly(head_state(model, head), parts["head"], "head")
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in parts["moved"]}
        load_exactly(buffers, parts["moved"], "set of moved statistics")
        freeze(model, head)
        with torch.random.fork_rng(devices=[]):  # initial values are overwritten; the caller's generator stays as it is
            for group in manifest.deltas:
                settings = settings_of(group, allow_plugins)
                if settings.component is not None and issubclass(settings.component, StructuralDelta):
                    attach_structural(model, settings)
                    continue
                for site in group.sites:
                    attach_delta(model, settings, find_target(model, site))
        load_exactly(delta_state(model), parts["delta"], "delta")
    except (DeltaError, NetworkError, PluginError, ValidationError) as error:
        raise ExportError(f"{folder}: {error}") from error
    if not manifest.unchanged:
        _check_learned(model, folder)


def parts_of(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    """The tensors of a delta file by part: ``delta``, ``head`` and ``moved``, each by name without that prefix."""
    parts: dict[str, dict[str, Tensor]] = {"delta": {}, "head": {}, "moved": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise ExportError(f"{folder / TENSORS}: unexpected tensor {name!r}")
        parts[part][rest] = tensor
    return parts


def _groups(model: nn.Module) -> tuple[DeltaGroup, ...]:
    """Deltas by order and settings, so that attaching group after group gives every layer its deltas in order.

    Weight deltas come first; a structural delta finds its blocks again by its patterns.
    """
    groups: dict[str, DeltaGroup] = {}
    for site in sorted(deltas(model), key=lambda site: site.index):
        if isinstance(site.delta, Statistics):
            continue  # moved statistics
        if isinstance(site.delta, StructuralDelta):
            settings = site.delta.settings.model_dump(mode="json", exclude={"kinds"})
            groups[site.name] = DeltaGroup(order=site.index, settings=settings, sites=(site.name,))
            continue
        settings = site.delta.settings.model_dump(mode="json", exclude={"sites", "exclude", "kinds"})
        group = groups.setdefault(f"{site.index} {settings}", DeltaGroup(order=site.index, settings=settings, sites=()))
        groups[f"{site.index} {settings}"] = group.model_copy(update={"sites": (*group.sites, site.name)})
    return tuple(groups.values())


def settings_of(group: DeltaGroup, allow_plugins: bool) -> DeltaSettings:
    """The settings of a group's deltas; a class outside this package is imported only if plug-ins are allowed."""
    name = str(group.settings.get("type"))
    if is_import_path(name) and not allow_plugins:
        raise DeltaError(f"it needs the class {name!r}; pass allow_plugins=True (--allow-plugins) if you trust both")
    settings = Registry("distill.deltas", "Delta").settings_of(name).model_validate(group.settings)
    assert isinstance(settings, DeltaSettings)
    return settings


def _moved(model: nn.Module, before: Fingerprint, now: Fingerprint) -> list[str]:
    """Names of the buffers that differ from those before training. Any other difference is an error."""
    buffers = {name for name, _ in model.named_buffers()}
    changed = [name for name in before.tensors if now.tensors.get(name) != before.tensors[name]]
    foreign = [name for name in changed if name not in buffers] + sorted(now.tensors.keys() - before.tensors.keys())
    if foreign:
        names = ", ".join(foreign[:5])
        raise ExportError(f"the backbone is frozen, but {len(foreign)} of its tensors have changed: {names}")
    return changed


def check_backbone(manifest: DeltaManifest, backbone: nn.Module, folder: Path) -> None:
    """Check that a backbone is the one that a delta was trained on.

    Args:
        manifest: of the delta.
        backbone: a timm model without deltas.
        folder: of the delta; errors name it.

    Raises:
        ExportError: it is another one; the text lists what differs.
    """
    config: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    if deltas(backbone):
        raise ExportError(f"{folder}: the given backbone already has deltas")
    problems = []
    if config["architecture"] != manifest.architecture:
        problems.append(f"architecture is {config['architecture']}, expected {manifest.architecture}")
    if backbone.num_classes != manifest.num_classes:
        problems.append(f"{backbone.num_classes} classes, expected {manifest.num_classes}")
    identity = fingerprint(backbone_state(backbone, classifier_names(backbone)))
    _refuse_other([*problems, *differences(manifest.backbone, identity)], manifest, folder)


def check_identity(manifest: DeltaManifest, identity: Fingerprint, folder: Path) -> None:
    """As :func:`check_backbone`, by a fingerprint that is known already; whatever the number of classes.

    Args:
        manifest: of the delta.
        identity: of the backbone without its head.
        folder: of the delta; errors name it.

    Raises:
        ExportError: it is another backbone.
    """
    _refuse_other(differences(manifest.backbone, identity), manifest, folder)


def _refuse_other(problems: Sequence[str], manifest: DeltaManifest, folder: Path) -> None:
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        lines = "\n  ".join([*problems[:20], *more])
        raise ExportError(f"{folder}: made for another backbone ({manifest.origin}):\n  {lines}")


def _check_learned(model: nn.Module, folder: Path) -> None:
    """Raise if the deltas change nothing, as after a loader that has not filled them."""
    if reason := reason_unlearned(model):
        raise ExportError(f"{folder}: {reason}, nothing was learned")


def reason_unlearned(model: nn.Module) -> str:
    """Why the deltas of a model change nothing; empty if they change something, or if there are none."""
    attached = [site.delta for site in deltas(model)]
    statistics = any(isinstance(delta, Statistics) for delta in attached)
    if (
        attached
        and not statistics
        and not any(bool(tensor.any()) for delta in attached for tensor in delta.parameters())
    ):
        return "all-zero delta"
    for layer in model.modules():
        changes: Any = getattr(layer, "parametrizations", {})
        for name in changes:
            with torch.no_grad():
                if not torch.equal(getattr(layer, name), changes[name].original):
                    return ""
    structural = [delta for delta in attached if isinstance(delta, StructuralDelta)]
    if attached and all(delta.is_identity() for delta in structural):
        return f"all {len(attached)} deltas leave the backbone unchanged"
    return ""


def _check_labels(labels: Sequence[str], num_classes: int) -> None:
    if labels and len(labels) != num_classes:
        raise ExportError(f"{len(labels)} labels for {num_classes} classes")
