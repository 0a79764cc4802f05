"""Distillation: teacher and student get two views of the same images, and objectives compare their outputs.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from augment.base import Settings
from distill.experiments.base import Experiment
from distill.experiments.student import ExportingExperiment, uses_classifier
from distill.yaml_tree import ConfigError

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage


class ControlSettings(Settings):
    """The controls that the student is compared with."""

    linear_probe: bool = Field(True, description="logistic regression on the frozen backbone's features")
    labels_only: bool = Field(
        True, description="the same student with as many updates on its cross-entropy (ce) alone, without a teacher"
    )


class DistillationExperiment(ExportingExperiment):
    """The config of a distillation: data, views, teacher, student, objectives, training, controls, export."""

    keeps_moments: ClassVar[bool] = True
    kind: Literal["distillation"] = "distillation"  # type: ignore[assignment]
    controls: ControlSettings = ControlSettings()

    def describe(self, data: ExperimentData) -> list[str]:
        if any(map(uses_classifier, self.objectives)):
            return []
        text = "no objective trains the student's classifier, so accuracy and agreement say nothing about the student"
        return [f"{text}; with kind: unsupervised it has none"]

    def plan(self) -> list[Stage]:
        from distill.stages.evaluate import Evaluate
        from distill.stages.labels_only import LabelsOnly
        from distill.stages.linear_probe import FitLinearProbe
        from distill.stages.train_student import TrainStudent

        teachers = self.plan_teacher()
        student = TrainStudent(
            "student",
            student=self.student,
            objectives=self.objectives,
            augment=self.augment,
            training=self.training,
            teacher=self.teacher,
            networks=tuple(stage.output for stage in teachers),
            new_heads=self.fit_teacher is not None,
        )
        controls: list[Any] = []
        if self.controls.linear_probe:
            controls.append(FitLinearProbe("linear-probe", self.student.network))
        if self.controls.labels_only and self.teacher is not None and self.teacher.frozen:
            parts = (self.student, self.augment, self.training, self.objectives)
            controls.append(LabelsOnly("labels-only", *parts, like=student.output))
        models = tuple(stage.output for stage in (*controls, student))
        test = Evaluate("test", models=models, student=student.output)
        return [*teachers, student, *controls, test, *self.plan_export(student.output, test.output)]


def as_distillation(experiment: Experiment, source: str) -> DistillationExperiment:
    """The experiment, if it is a distillation. Raises ``ConfigError``, whose text names ``source``, if not."""
    if not isinstance(experiment, DistillationExperiment):
        raise ConfigError(f"{source}: kind: {experiment.kind}, and this command needs kind: distillation")
    return experiment
