"""A control: the same student, trained with as many updates on its labeled samples alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augment.policy import AugmentSettings
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.objectives.base import Objective, Schedule
from distill.objectives.ce import CrossEntropy
from distill.report.items import Item
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec, finished, load_trained, prepare
from distill.run.stage import Ref, Stage
from distill.run.start import start_key
from distill.stages.outputs import TrainedStudent
from distill.training.fit import RESULT, FitSummary, load_summary
from distill.training.settings import TrainingSettings


@dataclass(frozen=True)
class LabelsOnly(Stage[TrainedStudent | None]):
    """Trains the control; the output is None if no sample has a label.

    Args:
        student: network, deltas, which weights are trained.
        augment: of the experiment; the control gets views like the student's.
        training: of the experiment; the epochs are scaled to the student's number of updates.
        objectives: of the experiment; the control has their cross-entropy, with its class weights and label smoothing.
        like: the student that the control is compared with.
    """

    student: StudentSettings
    augment: AugmentSettings
    training: TrainingSettings
    objectives: tuple[Objective.Settings, ...]
    like: Ref[TrainedStudent]

    @property
    def cross_entropy(self) -> CrossEntropy.Settings:
        """The student's first cross-entropy with weight 1 from the start; that of default settings if it has none."""
        given = next(
            (own for own in self.objectives if isinstance(own, CrossEntropy.Settings)), CrossEntropy.Settings()
        )
        return given.model_copy(update={"weight": 1.0, "schedule": Schedule()})

    def check(self, context: RunContext) -> None:
        """Check the settings against the labels; the student's own check tries a step of the same student."""
        if context.data.labeled_count and (like := context.find(self.like)) is not None:
            no_step = replace(context, trial=None)
            fit_spec = FitSpec(no_step, None, (self.cross_entropy,), self.augment.alone(), self.training)
            fit_spec.check(like.student, "labels only")

    def key(self, context: RunContext) -> Mapping[str, Any]:
        parts = {
            "student": self.student,
            "augment": self.augment,
            "training": self.training,
            "cross_entropy": self.cross_entropy,
        }
        return {name: part.model_dump(mode="json") for name, part in parts.items()} | start_key(self.student)

    def run(self, context: RunContext, folder: Path) -> TrainedStudent | None:
        if not context.data.labeled_count:
            return None
        steps, before = context.get(self.like).fit.steps, self.training
        per_epoch = before.updates(len(context.data.train_loader(labeled_only=True)))
        epochs = max(1, -(-steps // per_epoch))
        alone = self.augment.alone(epochs / before.epochs)
        fit_spec = FitSpec(context, None, (self.cross_entropy,), alone, before.scaled(epochs), labeled_only=True)
        spec = self._spec(context)
        student = prepare(spec, fit_spec, folder, "labels only", before.epochs)
        fit = fit_spec.fit(student, folder, "labels only")
        return self._trained(context, spec, finished(spec, student), fit, folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent | None:
        if not (folder / RESULT).is_file():
            return None
        spec = self._spec(context)
        return self._trained(context, spec, load_trained(spec, folder), load_summary(folder), folder)

    def report(self, context: RunContext, output: TrainedStudent | None) -> Iterable[Item]:
        return () if output is None else output.items()

    def _spec(self, context: RunContext) -> StudentSpec:
        return StudentSpec(self.student, context.seed, len(context.data.classes))

    def _trained(
        self, context: RunContext, spec: StudentSpec, student: Student, fit: FitSummary, folder: Path
    ) -> TrainedStudent:
        what = f"the same student without a teacher, {context.data.labeled_count} labels"
        return TrainedStudent("labels only", what, student, None, spec, fit, folder)
