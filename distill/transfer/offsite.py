"""Offsite-tuning: what leaves the owner, and a student of the full network from a delta file of its emulator.

The owner gives away an emulator (:mod:`distill.models.emulator`), the user tunes its two ends and gives back a delta
file, which attaches to the same ends of the full network. The file holds the SHA-256 of every tensor of the emulator.
All tensors of the ends must be those of the full network; the middle, which the owner replaces, may differ.

Paper: Xiao et al., Offsite-Tuning: Transfer Learning without Full Model, arXiv 2302.04870.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.deltas.base import StructuralDelta, tensor_bytes
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, read_delta, settings_of
from distill.models.emulator import ARCHITECTURE
from distill.models.fingerprint import fingerprint
from distill.models.network import create_network
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.student import Student
from distill.run.from_delta import LOGITS, student_on


@dataclass(frozen=True)
class Leaving:
    """Bytes of weights without a classifier, that leave the owner with an emulator."""

    owner: int
    """Of the full network."""
    emulator: int
    verbatim: int
    """Of the emulator's tensors that are, under the same name, those of the full network."""

    @property
    def share(self) -> float:
        """The fraction of the owner's weights that leaves verbatim."""
        return self.verbatim / self.owner

    def __str__(self) -> str:
        return f"{self.emulator:,} of {self.owner:,} bytes; {self.share:.1%} of the owner's weights leave verbatim" + (
            f" ({self.verbatim:,} bytes)" if self.verbatim != self.emulator else ""
        )


def leaving(owner: Mapping[str, Tensor], emulator: Mapping[str, Tensor]) -> Leaving:
    """What leaves the owner.

    Args:
        owner: tensors of the full network, without the classifier.
        emulator: those of the emulator.
    """
    same = [tensor for name, tensor in emulator.items() if name in owner and torch.equal(tensor, owner[name])]
    return Leaving(tensor_bytes(owner.values()), tensor_bytes(emulator.values()), tensor_bytes(same))


def check_ends(manifest: DeltaManifest, network: nn.Module, folder: Path) -> tuple[str, ...]:
    """Check that a network has the ends that a delta file of an emulator was trained on.

    Args:
        manifest: of the delta file.
        network: the full network, without deltas, with as many classes.
        folder: of the delta file, for errors.

    Returns:
        Names of the blocks of the middle.

    Raises:
        ExportError: the file does not belong to an emulator, changes its middle, or its ends are others; the text
            names the layers.
    """
    if manifest.architecture != ARCHITECTURE:
        raise ExportError(
            f"{folder}: trained on {manifest.origin}, which is no emulator; load it onto that network instead"
        )
    if absent := [name for name in ("body", "middle") if name not in manifest.model_args]:
        raise ExportError(f"{folder}: its model_args lack {absent[0]!r}, which those of an emulator have")
    middle = tuple(manifest.model_args["middle"])
    if changed := [site for group in manifest.deltas for site in group.sites if inside(site, middle)]:
        raise ExportError(
            f"{folder}: changes {changed[0]!r} in the emulator's middle, which its owner replaces; only the ends may be"
            " tuned"
        )
    body, config = manifest.model_args["body"], network.pretrained_cfg
    problems = []
    if config["architecture"] != body:  # type: ignore[index]
        problems.append(f"architecture is {config['architecture']}, expected {body}")  # type: ignore[index]
    if network.num_classes != manifest.num_classes:
        problems.append(f"{network.num_classes} classes, expected {manifest.num_classes}")
    own = fingerprint(backbone_state(network, classifier_names(network))).tensors
    expected = {name: mark for name, mark in manifest.backbone.tensors.items() if not inside(name, middle)}
    actual = {name: mark for name, mark in own.items() if not inside(name, middle)}
    problems += [f"missing {name}" for name in expected if name not in actual]
    problems += [f"unexpected {name}" for name in actual if name not in expected]
    for name in expected.keys() & actual.keys():
        (got, _), (want, _) = actual[name].split(), expected[name].split()
        if got != want:
            problems.append(f"{name} is {got}, expected {want}")
        elif actual[name] != expected[name]:
            problems.append(f"{name} has other values")
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        lines = "\n  ".join(sorted(problems)[:20] + more)
        raise ExportError(f"{folder}: the ends of its emulator are not those of this network:\n  {lines}")
    return middle


def plugged_student(
    folder: Path, network: NetworkSettings, needs: frozenset[str] = LOGITS, *, allow_plugins: bool = False
) -> tuple[Student, DeltaManifest]:
    """The student that a delta file of an emulator makes of the full network.

    Args:
        folder: of the delta file.
        network: the full network.
        needs: outputs that objectives read.
        allow_plugins: import delta classes outside this package that the file names. Importing runs code.

    Returns:
        The student, whose delta file belongs to the full network, and the manifest of the emulator's delta file.

    Raises:
        ExportError: damaged files, or other ends.
    """
    manifest, tensors = read_delta(folder)
    made = create_network(network, manifest.num_classes)
    middle = check_ends(manifest, made.model, folder)
    if foreign := [name for name in tensors if name.startswith("moved/") and inside(name[6:], middle)]:
        raise ExportError(f"{folder}: has statistics of the emulator's middle, such as {foreign[0][6:]}")
    entries: list[Any] = []
    for group in sorted(manifest.deltas, key=lambda group: group.order):
        entry = settings_of(group, allow_plugins)
        structural = entry.component is not None and issubclass(entry.component, StructuralDelta)
        entries.append(entry if structural else entry.model_copy(update={"sites": group.sites}))
    settings = StudentSettings(network=network).model_copy(update={"deltas": tuple(entries)})
    made.model.owners_blocks = middle  # type: ignore[assignment]
    student = student_on(made, folder, settings, needs, allow_plugins=allow_plugins)
    del student.model.owners_blocks
    return student, manifest
