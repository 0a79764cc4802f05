"""Builds the student of a fit: before training, with the choices of its deltas from data, and after training.

Deltas that choose ranks, masks or initial values before training (``Delta.prepares``) get a ``Calibration``. The
choices are saved as ``prepared.ckpt`` in the folder of the fit, so that a resumed run, an export and all ranks build
the same student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from augment.base import Registry
from distill.deltas.base import Delta, DeltaInit, DeltaSettings, entry_named
from distill.deltas.foreseen import check_entry
from distill.deltas.rank_settings import at_rank_one
from distill.deltas.sites import classifier_names
from distill.deltas.state import head_state, load_exactly
from distill.models.network import Network, as_network, create_network
from distill.models.reused_head import reuse_head, reused
from distill.models.settings import ReusedHead, StudentSettings
from distill.models.student import Student
from distill.run.fit_spec import FitSpec
from distill.run.folder import RunError, is_first_rank
from distill.run.start import start_of
from distill.run.warm_up import StudentCalibration, WarmUp
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT, load_result

PREPARED = "prepared.ckpt"
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class StudentSpec:
    """The specification of a student; all stages and ranks build equal students from it.

    Args:
        settings: network and deltas.
        seed: of randomly initialized weights.
        classes: number of classes of its head.
        needs: outputs that the objectives read, of ``{"logits", "pooled", "maps"}``.
        head: the teacher's, in the place of the student's, if an objective requires it.
        network: makes the network in the place of ``settings.network``; it gets a new classifier.
    """

    settings: StudentSettings
    seed: int
    classes: int
    needs: frozenset[str] = LOGITS
    head: ReusedHead | None = None
    network: Callable[[], Network] | None = None

    def build(
        self, inits: Sequence[DeltaInit] | None = None, deltas: tuple[DeltaSettings, ...] | None = None
    ) -> Student:
        """The student before training.

        Args:
            inits: settings and values of the deltas of each entry of ``student.deltas``; None: from the settings.
            deltas: entries to use instead of ``student.deltas``.

        Returns:
            The student, on the CPU.
        """
        torch.manual_seed(self.seed)
        settings = self.settings if deltas is None else self.settings.model_copy(update={"deltas": deltas})
        if self.network is None:
            network = create_network(settings.network, self.classes)
        else:
            made = self.network()
            network = replace(made, model=as_network(made.model, self.classes).model)
        if self.head is not None:
            reuse_head(network.model, self.head)
        return Student(network, settings, self.needs, inits)


def trial_student(spec: StudentSpec) -> Student:
    """A temporary student, built to find configuration errors early; ranks that are not yet chosen are 1.

    Raises:
        NetworkError: the network cannot be built.
        DeltaError: the deltas cannot be attached.
    """
    entries = spec.settings.deltas
    if spec.settings.start is not None and spec.network is None:
        return _checked(spec.build(start_of(spec, ())[0]), entries)
    return _checked(spec.build([DeltaInit([at_rank_one(entry)]) for entry in entries]), entries)


def prepare(spec: StudentSpec, fit_spec: FitSpec, folder: Path, name: str, full_epochs: int) -> Student:
    """The student before training, with the ranks, masks and initial values that its deltas choose from data.

    With ``student.start``, they are those of a delta file instead.

    Args:
        spec: of the student.
        fit_spec: the fit, whose data and loss the choices depend on.
        folder: of the fit; holds the choices and the warm-ups.
        name: of the fit, for the console.
        full_epochs: number of epochs that the lengths of warm-ups are relative to; a fit of another number scales them.

    Returns:
        The student, equal on all ranks and after a restart.
    """
    entries = spec.settings.deltas
    if spec.settings.start is not None and spec.network is None:  # a network of a stream's earlier task has its own
        if (folder / PREPARED).is_file():
            return load_prepared(spec, folder)
        return prepare_from(spec, *start_of(spec, fit_spec.context.data.classes), folder)
    if not any(_method(entry).prepares(entry) for entry in entries):
        return _checked(spec.build(), entries)
    if not (folder / PREPARED).is_file():
        trial_student(spec)
        content = _choices(spec, WarmUp(spec, fit_spec, folder, name, full_epochs))
        if is_first_rank():
            VerifiedCheckpointIO().save_checkpoint(content, folder / PREPARED)
        return _from_choice(spec, content)
    return load_prepared(spec, folder)


def prepare_from(spec: StudentSpec, inits: Sequence[DeltaInit], head: Mapping[str, Tensor], folder: Path) -> Student:
    """The student before training, with given deltas and a given head, such as those of a trained one.

    Args:
        spec: of the student.
        inits: of each entry of ``student.deltas``.
        head: tensors of the head; empty: a new one.
        folder: of the fit; they are saved there, and what is saved there already is used instead.

    Returns:
        The student, equal on all ranks and after a restart.
    """
    if (folder / PREPARED).is_file():
        return load_prepared(spec, folder)
    content = {"head": dict(head), "entries": [_plain(init) for init in inits]}
    if is_first_rank():
        VerifiedCheckpointIO().save_checkpoint(content, folder / PREPARED)
    return _from_choice(spec, content)


def load_prepared(spec: StudentSpec, folder: Path) -> Student:
    """The student before the training of the fit in ``folder``, with the choices that are saved there, if any."""
    if not (folder / PREPARED).is_file():
        return spec.build()
    return _from_choice(spec, VerifiedCheckpointIO().load_checkpoint(folder / PREPARED))


def load_trained(spec: StudentSpec, folder: Path) -> Student:
    """The student of a finished fit, with the number of classes and the head of the fit.

    Raises:
        RunError: the fit is not finished.
    """
    if not (folder / RESULT).is_file():
        raise RunError(f"{folder} holds no finished fit; resume the run first")
    result = VerifiedCheckpointIO().load_checkpoint(folder / RESULT)
    head = ReusedHead(**result["head"]) if result["head"] else None
    spec = replace(spec, classes=result["classes"], head=head)
    student = load_prepared(spec, folder)
    load_result(student, folder)
    return finished(spec, student)


def finished(spec: StudentSpec, student: Student) -> Student:
    """The trained student for evaluation and export; a new one if its deltas are converted after training."""
    inits = student.finish()
    if inits is None:
        return student
    head = head_state(student.model, classifier_names(student.model))
    smaller = replace(spec, needs=student.needs, classes=student.shapes.classes, head=reused(student.model)).build(
        inits
    )
    load_exactly(head_state(smaller.model, classifier_names(smaller.model)), head, "head")
    return smaller


def _choices(spec: StudentSpec, warm_up: WarmUp) -> dict[str, Any]:
    """The choices of all entries, as plain containers and tensors."""
    entries = spec.settings.deltas
    inits = []
    for number, entry in enumerate(entries):
        if _method(entry).prepares(entry):
            torch.manual_seed(spec.seed)
            inits.append(_method(entry).prepare(entry, StudentCalibration(warm_up, number)))
        else:
            inits.append(DeltaInit([entry]))
    content: dict[str, Any] = {"head": {}}
    for init in inits:
        if init.warm_start is not None:
            point: Student = init.warm_start.student  # type: ignore[attr-defined]
            content["head"] = head_state(point.model, classifier_names(point.model))
            inits = [
                other if _method(entry).prepares(entry) else DeltaInit([entry], point.entry_state(number))
                for number, (entry, other) in enumerate(zip(entries, inits))
            ]
    content["entries"] = [_plain(init) for init in inits]
    return content


def _plain(init: DeltaInit) -> dict[str, Any]:
    return {
        "settings": [settings.model_dump(mode="json") for settings in init.settings],
        "tensors": {site: dict(tensors) for site, tensors in init.tensors.items()},
    }


def _from_choice(spec: StudentSpec, content: dict[str, Any]) -> Student:
    deltas = Registry("distill.deltas", "Delta")
    inits = []
    for entry in content["entries"]:
        settings = [deltas.settings_of(each["type"]).model_validate(each) for each in entry["settings"]]
        inits.append(DeltaInit(settings, entry["tensors"]))  # type: ignore[arg-type]
    student = spec.build(inits)
    if content["head"]:
        load_exactly(head_state(student.model, classifier_names(student.model)), content["head"], "head")
    return student


def _checked(student: Student, entries: Sequence[DeltaSettings]) -> Student:
    """Return the student. Raises ``DeltaError`` if its deltas do not support their settings."""
    for number, (entry, deltas) in enumerate(zip(entries, student.entries)):
        with entry_named(number):
            check_entry(student.model, entry, deltas)
    return student


def _method(entry: DeltaSettings) -> type[Delta]:
    assert entry.component is not None and issubclass(entry.component, Delta)
    return entry.component
