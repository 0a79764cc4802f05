"""Prepares the student, trains it with or without a teacher, and converts its deltas to their exported form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augment.policy import AugmentSettings
from distill.models.network import Network
from distill.models.reused_head import enlargement
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.models.teacher_settings import TeacherSettings
from distill.objectives.base import Objective
from distill.report.items import Item, Note
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec, finished, load_trained, prepare, trial_student
from distill.run.stage import Ref, Stage, StageError
from distill.run.start import check_start, start_key, start_note
from distill.run.teacher import label_maps, make_teacher, text_fingerprints, text_store
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import (
    TeacherNetworks,
    TrainedStudent,
    check_classes,
    network_notes,
    pretrained_networks,
)
from distill.stages.text_items import label_map_items
from distill.training.fit import FitSummary, load_summary
from distill.training.settings import TrainingSettings
from distill.training.terms import needs_of


@dataclass(frozen=True)
class TrainStudent(Stage[TrainedStudent]):
    """Trains the student.

    Args:
        student: network, deltas, which weights are trained.
        objectives: the terms of the loss.
        augment: how the views are made.
        training: epochs, optimizer, schedule, guards.
        teacher: how the teacher's networks are used; None: the student is trained on labels alone.
        networks: the teacher's frozen networks, in the order of ``teacher.networks``.
        new_heads: whether a fit in this run gives these networks new heads for the data's classes.
        row: name of the student in tables and curves.
    """

    student: StudentSettings
    objectives: tuple[Objective.Settings, ...]
    augment: AugmentSettings
    training: TrainingSettings
    teacher: TeacherSettings | None = None
    networks: tuple[Ref[TeacherNetworks], ...] = ()
    new_heads: bool = False
    row: str = "student"

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")
        check_start(self.student)

    def check(self, context: RunContext) -> TrainedStudent:
        """Build teacher and a temporary student with untrained heads, and try a step of the fit.

        Returns:
            The student after one step, with its deltas in their exported form.
        """
        check_classes(context.data)
        needs_labels = all(objective.component.needs_labels for objective in self.objectives)  # type: ignore[union-attr]
        if needs_labels and not context.data.labeled_count:
            raise StageError(f"{self.name}: no training image has a label, and there is no teacher to learn from")
        fit_spec = self._fit_spec(context, self._networks_of_check(context), compiled=False)
        spec = self._student_spec(context, fit_spec, compiled=False)
        with trying(f"{self.name}: building the student"):
            student = trial_student(spec)
        fit_spec.check(student, self.name)
        with trying(f"{self.name}: the exported form of the deltas"):
            student = finished(spec, student)
        fit = FitSummary(0, 0, 0.0, 0.0, {}, 0, -1)
        return TrainedStudent(self.row, self._what(context), student, fit_spec.teacher, spec, fit, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        parts = {"student": self.student, "augment": self.augment, "training": self.training, "teacher": self.teacher}
        return {
            **{name: part and part.model_dump(mode="json") for name, part in parts.items()},
            **start_key(self.student),
            "objectives": [objective.model_dump(mode="json") for objective in self.objectives],
            "data": [context.data.fingerprint(), context.data.settings.model_dump(mode="json")],
            **({"texts": texts} if (texts := text_fingerprints(self.teacher)) else {}),
        }

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        fit_spec = self._fit_spec(context, self._networks(context))
        spec = self._student_spec(context, fit_spec)
        student = self._prepared(context, spec, fit_spec, folder)
        fit = fit_spec.fit(student, folder, self.name)
        student = finished(spec, student)
        if (larger := enlargement(student.model)) is not None:
            context.print(str(larger))
        return TrainedStudent(self.row, self._what(context), student, fit_spec.teacher, spec, fit, folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        fit_spec = self._fit_spec(context, self._networks(context))
        spec = self._student_spec(context, fit_spec)
        student, fit = load_trained(spec, folder), load_summary(folder)
        return TrainedStudent(self.row, self._what(context), student, fit_spec.teacher, spec, fit, folder)

    def report(self, context: RunContext, output: TrainedStudent) -> Iterable[Item]:
        yield from output.items()
        if self.student.start is not None:
            text = start_note(self.student, tuple(context.data.classes), output.student.model)
            yield Note(text=f"{self.row}: {text}")
        yield from network_notes([output.student.network])
        if output.teacher is not None:
            yield from label_map_items(output.teacher)
        if (larger := enlargement(output.student.model)) is not None:
            yield Note(text=str(larger))

    def _prepared(self, context: RunContext, spec: StudentSpec, fit_spec: FitSpec, folder: Path) -> Student:
        """The student before its fit."""
        return prepare(spec, fit_spec, folder, self.name, self.training.epochs)

    def _networks(self, context: RunContext) -> list[Network]:
        return [network for ref in self.networks for network in context.get(ref).networks]

    def _networks_of_check(self, context: RunContext) -> Sequence[Network]:
        """The networks that the checks of the teacher's stages built; those of a finished fit have untrained heads."""
        if self.teacher is None:
            return ()
        outputs = [context.find(ref) for ref in self.networks]
        if None not in outputs:
            return [network for output in outputs if output is not None for network in output.networks]
        classes = len(context.data.classes) if self.new_heads else None
        return pretrained_networks(self.teacher.frozen, context.seed, classes)

    def _fit_spec(self, context: RunContext, networks: Sequence[Network], compiled: bool = True) -> FitSpec:
        """The fit; with ``compiled`` false, nothing is compiled that the settings want compiled."""
        teacher, cache, momentum = None, None, None
        if self.teacher is not None:
            momentum = self.teacher.momentum
        if self.teacher is not None and self.teacher.frozen:
            settings = self.teacher if compiled else self.teacher.model_copy(update={"compile": False})
            maps = label_maps(settings, networks, context.data.classes, text_store(context))
            teacher, cache = make_teacher(settings, self.objectives, networks, maps), settings.cache
        augment = self.augment
        if not compiled and context.device.type == "cuda":
            augment = augment.model_copy(update={"compile": False})
        averaged = self.teacher.ema if self.teacher is not None else None
        return FitSpec(
            context,
            teacher,
            self.objectives,
            augment,
            self.training,
            cache,
            momentum=momentum,
            normalizations=averaged.normalizations if averaged is not None else (),
        )

    def _student_spec(self, context: RunContext, fit_spec: FitSpec, compiled: bool = True) -> StudentSpec:
        teacher = fit_spec.teacher
        classes = len(context.data.classes) or (teacher.shapes[0].classes if teacher else 0)
        needs, _ = needs_of(self.objectives)
        settings = self.student if compiled else self.student.model_copy(update={"compile": False})
        return StudentSpec(settings, context.seed, classes, needs, fit_spec.head)

    def _what(self, context: RunContext) -> str:
        count = context.data.labeled_count
        labels = f"{count} labels, " if count else ""
        with_teacher = self.teacher is not None and self.teacher.frozen
        return f"{labels}{len(context.data.subset('train'))} images" + (" and the teacher" if with_teacher else "")
