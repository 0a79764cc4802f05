"""A student before its training, and after it: what methods choose from the data, and what becomes of their deltas.

Methods that prepare themselves (``Delta.prepares``) are shown an :class:`Calibration`. What they choose is kept as
``prepared.ckpt`` in the folder of the fit, so that a resumed run, an export and every rank use the same student.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from augment.base.registry import Registry
from distill.deltas.base import Delta, DeltaInit, DeltaSettings, entry_named
from distill.deltas.foreseen import check_entry
from distill.deltas.rank_settings import at_rank_one
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state, load_exactly
from distill.models.network import create_network
from distill.models.reused_head import reuse_head, reused
from distill.models.settings import ReusedHead
from distill.models.student import Student
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import is_first_rank
from distill.run.warm_up import StudentCalibration, WarmUp
from distill.training.checkpoints import VerifiedCheckpointIO

PREPARED = "prepared.ckpt"
LOGITS = frozenset({"logits"})


def new_student(
    context: RunContext,
    needs: frozenset[str] = LOGITS,
    classes: int | None = None,
    starts: Sequence[DeltaInit] | None = None,
    head: ReusedHead | None = None,
) -> Student:
    """The experiment's student as it is before training: the same for every stage, since the seed is.

    Args:
        head: in the place of its own, if an objective wants that.
    """
    torch.manual_seed(context.experiment.seed)
    settings = context.experiment.student
    network = create_network(settings.network, classes or len(context.data.classes))
    if head is not None:
        reuse_head(network.model, head)
    return Student(network, settings, needs, starts)


def trial_student(context: RunContext, needs: frozenset[str], classes: int, head: ReusedHead | None = None) -> Student:
    """A student made to be thrown away, for what is wrong with it; deltas that prepare themselves have rank 1.

    Raises:
        NetworkError, DeltaError: as making it for its own training would.
    """
    entries = context.experiment.student.deltas
    return _checked(
        new_student(context, needs, classes, [DeltaInit([at_rank_one(entry)]) for entry in entries], head), entries
    )


def prepare(fit_spec: FitSpec, folder: Path, name: str, needs: frozenset[str], classes: int) -> Student:
    """The student with which training starts, its deltas prepared from the lesson's own data and loss."""
    context = fit_spec.context
    entries = context.experiment.student.deltas
    if not any(_method(entry).prepares(entry) for entry in entries):
        return _checked(new_student(context, needs, classes, head=fit_spec.head), entries)
    if not (folder / PREPARED).is_file():
        trial_student(context, needs, classes, fit_spec.head)
        content = _chosen(fit_spec, folder, name, needs, classes)
        if is_first_rank():
            VerifiedCheckpointIO().save_checkpoint(content, folder / PREPARED)
        return _begun(context, needs, classes, content, fit_spec.head)
    return load_prepared(context, folder, needs, classes, fit_spec.head)


def load_prepared(
    context: RunContext, folder: Path, needs: frozenset[str], classes: int, head: ReusedHead | None = None
) -> Student:
    """The student with which the fit in ``folder`` started, or starts if nothing had to be prepared."""
    if not (folder / PREPARED).is_file():
        return new_student(context, needs, classes, head=head)
    return _begun(context, needs, classes, VerifiedCheckpointIO().load_checkpoint(folder / PREPARED), head)


def finished(context: RunContext, student: Student) -> Student:
    """The trained student as it is evaluated and exported: a new one if a method makes something else of its deltas."""
    starts = student.finish()
    if starts is None:
        return student
    head = head_state(student.model, classifier_names(student.model))
    smaller = new_student(context, student.needs, student.shapes.classes, starts, reused(student.model))
    load_exactly(head_state(smaller.model, classifier_names(smaller.model)), head, "head")
    return smaller


def _chosen(fit_spec: FitSpec, folder: Path, name: str, needs: frozenset[str], classes: int) -> dict[str, Any]:
    """What the methods choose, as plain containers and tensors."""
    context = fit_spec.context
    entries = context.experiment.student.deltas
    training = WarmUp(fit_spec, folder, name, needs, classes)
    starts = []
    for number, entry in enumerate(entries):
        if _method(entry).prepares(entry):
            torch.manual_seed(context.experiment.seed)
            starts.append(_method(entry).prepare(entry, StudentCalibration(training, number)))
        else:
            starts.append(DeltaInit([entry]))
    content: dict[str, Any] = {"head": {}}
    for start in starts:
        if start.warm_start is not None:
            point: Student = start.warm_start.student  # type: ignore[attr-defined]
            content["head"] = head_state(point.model, classifier_names(point.model))
            starts = [
                other if _method(entry).prepares(entry) else DeltaInit([entry], point.entry_state(number))
                for number, (entry, other) in enumerate(zip(entries, starts))
            ]
    content["entries"] = [
        {
            "settings": [settings.model_dump(mode="json") for settings in start.settings],
            "tensors": {site: dict(tensors) for site, tensors in start.tensors.items()},
        }
        for start in starts
    ]
    return content


def _begun(
    context: RunContext, needs: frozenset[str], classes: int, content: dict[str, Any], head: ReusedHead | None
) -> Student:
    family = Registry("distill.deltas", "Delta")
    starts = []
    for entry in content["entries"]:
        settings = [family.settings_of(each["type"]).model_validate(each) for each in entry["settings"]]
        starts.append(DeltaInit(settings, entry["tensors"]))  # type: ignore[arg-type]
    student = new_student(context, needs, classes, starts, head)
    if content["head"]:
        load_exactly(head_state(student.model, classifier_names(student.model)), content["head"], "head")
    return student


def _checked(student: Student, entries: Sequence[DeltaSettings]) -> Student:
    """The student, whose deltas can do what their settings ask of them. Raises ``DeltaError``."""
    for number, (entry, deltas) in enumerate(zip(entries, student.entries)):
        with entry_named(number):
            check_entry(student.model, entry, deltas)
    return student


def _method(entry: DeltaSettings) -> type[Delta]:
    assert entry.component is not None and issubclass(entry.component, Delta)
    return entry.component
