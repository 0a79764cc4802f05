"""A student that starts from a delta file, ``student.start``: its deltas, and its head where classes are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from distill.deltas.base import DeltaInit
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, read_delta
from distill.models.reused_head import reused
from distill.models.settings import StudentSettings
from distill.run.from_delta import delta_folder, student_from_delta

if TYPE_CHECKING:  # which imports this
    from distill.run.prepare import StudentSpec


def check_start(settings: StudentSettings) -> None:
    """Raise ``ExportError`` if the delta file that a student starts from is missing or damaged."""
    if settings.start is not None:
        read_delta(delta_folder(settings.start))


def start_key(settings: StudentSettings) -> dict[str, str]:
    """What the key of a stage has besides the student's settings: the SHA-256 of the delta file that it starts from."""
    return {} if settings.start is None else {"start": read_delta(delta_folder(settings.start))[0].sha256}


def start_of(spec: StudentSpec, classes: Sequence[str]) -> tuple[list[DeltaInit], dict[str, Tensor]]:
    """What a student starts from.

    Args:
        spec: of the student, whose settings have a ``start``.
        classes: names of the classes of its head.

    Returns:
        The deltas of the file, and the tensors of the student's head: rows of classes that the file has too, under the
        same names, are those of the file; the others are new. A head that is not one linear layer is new.

    Raises:
        ExportError: a damaged file, another backbone, or other deltas.
    """
    assert spec.settings.start is not None
    folder = delta_folder(spec.settings.start)
    torch.manual_seed(spec.seed)  # of a backbone with random weights
    given, manifest = student_from_delta(folder, spec.settings)
    if not any(entry.type == "statistics" for entry in spec.settings.deltas):
        _, tensors = read_delta(folder)
        if any(name.startswith("moved/") for name in tensors):
            raise ExportError(
                f"{folder} has other batch-norm statistics than its backbone, and student.deltas has no place for them;"
                " leave student.deltas out, or put {type: statistics} before its deltas"
            )
    inits = given.inits()
    student = spec.build(inits)
    if student.backbone.sha256 != given.backbone.sha256:
        raise ExportError(f"{folder}: its backbone has random weights, which are others with another number of classes")
    head = {name: tensor.clone() for name, tensor in head_state(student.model, classifier_names(student.model)).items()}
    known = head_state(given.model, classifier_names(given.model))
    if _why_new(manifest, student.model) is None:
        for own, old in _shared_rows(manifest, classes):
            for name in head.keys() & known.keys():
                head[name][own] = known[name][old]
    return inits, head


def start_note(settings: StudentSettings, classes: Sequence[str], model: nn.Module) -> str:
    """What the head of a student that starts from a delta file started from, for the report.

    Args:
        settings: of the student, with a ``start``.
        classes: names of the classes of its head.
        model: its network.

    Returns:
        Such as "head: 2 of 4 classes from FILE".
    """
    assert settings.start is not None
    manifest, _ = read_delta(delta_folder(settings.start))
    if (why := _why_new(manifest, model)) is not None:
        return f"head: new, not that of {settings.start}: {why}"
    rows = len(_shared_rows(manifest, classes))
    others = "" if rows == len(classes) else ", the others are new"
    return f"head: {rows} of {len(classes)} classes from {settings.start}" + others


def _why_new(manifest: DeltaManifest, model: nn.Module) -> str | None:
    """Why no row of a student's head can be one of the file's; None if they can."""
    if manifest.head is not None:
        return "that one reads the features of a teacher"
    if reused(model) is not None:
        return "the student's is the teacher's"
    if not isinstance(model.get_classifier(), nn.Linear):  # type: ignore[operator]
        return "it is not one linear layer"
    return None if manifest.labels else "the file has no names of classes"


def _shared_rows(manifest: DeltaManifest, classes: Sequence[str]) -> list[tuple[int, int]]:
    """(row of a student's head, row of the file's) of the classes that both have."""
    return [(classes.index(name), row) for row, name in enumerate(manifest.labels) if name in classes]
