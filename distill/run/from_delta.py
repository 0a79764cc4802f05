"""A trainable student from a delta file: the same backbone, deltas and head, as they are in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from distill.deltas.base import DeltaInit, DeltaSettings, StructuralDelta
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state, load_exactly
from distill.deltas.statistics import REPLACED
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, check_backbone, parts_of, read_delta, settings_of
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.hub import local_folder
from distill.models.network import Network, as_network, create_network
from distill.models.reused_head import reuse_head
from distill.models.settings import StudentSettings
from distill.models.student import Student

LOGITS = frozenset({"logits"})


def delta_folder(path: Path) -> Path:
    """The delta folder that a path names: itself, ``export/delta`` of a run folder, or that of a name of the hub.

    Raises:
        ExportError: there is none.
    """
    path = local_folder(path)
    for folder in (path, path / "export" / "delta"):
        if (folder / "delta.json").is_file():
            return folder
    raise ExportError(f"{path} holds no delta file: neither delta.json nor export/delta")


def student_tree(manifest: DeltaManifest, moved: bool) -> dict[str, Any]:
    """The key ``student`` of a config that trains the deltas of a file further.

    Args:
        manifest: of the file.
        moved: whether its batch-norm statistics moved, so that the student has a ``statistics`` delta.

    Returns:
        Plain values.

    Raises:
        ExportError: the backbone had random weights, or is an emulator, which no name gives again.
    """
    if manifest.origin == "random":
        raise ExportError("the delta file belongs to a backbone of random weights; name it as student.network")
    if manifest.architecture == EMULATOR:
        raise ExportError(f"the delta file belongs to an {manifest.origin}; name its folder as student.network")
    noted = manifest.preprocessing
    network = {
        "model": manifest.origin,
        "size": noted.input_size[1],
        "mean": list(noted.mean),
        "std": list(noted.std),
        "in_chans": noted.input_size[0],
    }
    return {"network": network, "deltas": deltas_tree(manifest, moved)}


def deltas_tree(manifest: DeltaManifest, moved: bool) -> list[dict[str, Any]]:
    """The key ``student.deltas`` of a config that trains the deltas of a file further; see :func:`student_tree`."""
    deltas = [{**group.settings, "sites": _sites(group)} for group in sorted(manifest.deltas, key=lambda g: g.order)]
    return [*([{"type": "statistics"}] if moved else []), *deltas]


def student_from_delta(
    folder: Path, settings: StudentSettings, needs: frozenset[str] = LOGITS
) -> tuple[Student, DeltaManifest]:
    """The student that a delta file holds.

    Args:
        folder: of the delta file.
        settings: of a student with the same backbone; its deltas are those of :func:`student_tree`.
        needs: outputs that objectives read.

    Returns:
        The student, with moved statistics of the file as its ``statistics``, and the manifest.

    Raises:
        ExportError: damaged files, another backbone, or deltas that do not fit.
    """
    manifest, _ = read_delta(folder)
    network = create_network(settings.network, manifest.num_classes)
    check_backbone(manifest, network.model, folder)
    return student_on(network, folder, settings, needs, allow_plugins=True), manifest


def student_on(
    network: Network, folder: Path, settings: StudentSettings, needs: frozenset[str], *, allow_plugins: bool
) -> Student:
    """The student that a delta file makes of a network, which must have been checked to be the right one.

    Args:
        network: without deltas, with as many classes as the file.
        folder: of the delta file.
        settings: its deltas are those of :func:`student_tree`.
        needs: outputs that objectives read.
        allow_plugins: import delta classes outside this package that the file names.

    Returns:
        The student.

    Raises:
        ExportError: damaged files, or deltas that do not fit.
    """
    manifest, tensors = read_delta(folder)
    parts = parts_of(tensors, folder)
    if manifest.head is not None:
        reuse_head(network.model, manifest.head)
        network = as_network(network.model)
    groups = sorted(manifest.deltas, key=lambda group: group.order)
    inits, used = [], 0
    for entry in settings.deltas:
        if entry.type == "statistics":
            inits.append(DeltaInit([entry], _moved(parts["moved"])))
            continue
        if used == len(groups):
            raise ExportError(f"{folder} has {len(groups)} groups of deltas, and student.deltas names more")
        group = groups[used]
        used += 1
        if entry.type != group.settings["type"]:
            text = f"{folder} has a delta of type {group.settings['type']!r} where student.deltas names {entry.type!r}"
            raise ExportError(f"{text}; leave student.deltas out, and it is the file's")
        own: DeltaSettings = settings_of(group, allow_plugins).model_copy(update={"sites": tuple(_sites(group))})
        structural = own.component is not None and issubclass(own.component, StructuralDelta)
        values = {
            (own.type if structural else site): _of_site(parts["delta"], f"{site}.{group.order}.")
            for site in group.sites
        }
        inits.append(DeltaInit([own], values))
    if used != len(groups):
        raise ExportError(f"{folder} has {len(groups)} groups of deltas, and student.deltas names {used}")
    student = Student(network, settings, needs, inits)
    load_exactly(head_state(student.model, classifier_names(student.model)), parts["head"], "head")
    return student


def _sites(group: Any) -> list[str]:
    """Sites of a group; a structural delta finds its blocks by its own patterns."""
    return list(group.settings.get("sites") or group.sites)


def _of_site(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _moved(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Site → ``mean`` and ``var``, of statistics that the file has; those of other sites are the network's own."""
    moved: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, buffer = name.rpartition(".")
        if buffer in REPLACED:
            moved.setdefault(site, {})[REPLACED[buffer]] = tensor
    return moved
