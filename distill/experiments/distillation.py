"""Distillation: a teacher and a student look at two views of the same images, and objectives compare what they saw.

Importing this costs no torch: only validating what a config names (objectives, deltas, operations) does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, error_at, is_deferred
from augment.policy import AugmentSettings
from distill.experiments.base import Experiment
from distill.export.settings import ExportSettings
from distill.models.settings import StudentSettings, TeacherSettings
from distill.training.settings import FitTeacherSettings
from distill.yaml_tree import ConfigError

if TYPE_CHECKING:  # these import torch
    from distill.objectives.base import Objective
    from distill.run.stage import Stage
    from distill.stages.outputs import TeacherNetworks

    AnyObjective = Objective.Settings
else:
    AnyObjective = Annotated[Settings, Registry("distill.objectives", "Objective")]


class ControlSettings(Settings):
    """What the student is compared with."""

    linear_probe: bool = Field(True, description="logistic regression on the frozen backbone's features")
    labels_only: bool = Field(True, description="the same student and number of updates without a teacher")


class DistillationExperiment(Experiment):
    """Data, views, teacher, student, objectives, training, controls, export."""

    kind: Literal["distillation"] = "distillation"  # type: ignore[assignment]
    augment: AugmentSettings = AugmentSettings()
    teacher: TeacherSettings | None = Field(None, description="none: the student learns from labels alone")
    fit_teacher: FitTeacherSettings | None = Field(None, description="first train the teacher; cached by content")
    student: StudentSettings
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    controls: ControlSettings = ControlSettings()
    export: ExportSettings = ExportSettings()

    def plan(self) -> list[Stage]:
        from distill.stages.evaluate import Evaluate
        from distill.stages.export import ExportStudent
        from distill.stages.labels_only import LabelsOnly
        from distill.stages.linear_probe import FitLinearProbe
        from distill.stages.preview import PreviewViews
        from distill.stages.report import WriteReport
        from distill.stages.train_student import TrainStudent
        from distill.stages.verify import VerifyExport

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
        if self.controls.labels_only and self.teacher is not None:
            control = LabelsOnly("labels-only", self.student, self.augment, self.training, like=student.output)
            controls.append(control)
        models = tuple(stage.output for stage in (*controls, student))
        test = Evaluate("test", models=models, student=student.output)
        export = ExportStudent("export", self.export, student.output, test.output)
        verify = VerifyExport("verify", self.student, self.export, student.output, export.output)
        preview = PreviewViews("preview", self.augment, student.output)
        return [*teachers, student, *controls, test, export, verify, preview, WriteReport("report")]

    def plan_teacher(self) -> list[Stage[TeacherNetworks]]:
        """The stages that make the teacher's networks, for commands that need nothing else."""
        if self.teacher is None:
            return []
        if self.fit_teacher is None:
            from distill.stages.pretrained_teacher import PretrainedTeacher

            return [PretrainedTeacher("teacher", self.teacher)]
        from distill.stages.fit_teacher import FitTeacher

        augment = self.fit_teacher.augment or self.augment.alone().model_copy(update={"mix": None, "ramp": None})
        networks = self.teacher.networks
        names = ["teacher"] if len(networks) == 1 else [f"teacher-{number}" for number in range(len(networks))]
        return [FitTeacher(name, network, self.fit_teacher, augment) for name, network in zip(names, networks)]

    @model_validator(mode="after")
    def _parts_belong_together(self, info: ValidationInfo) -> DistillationExperiment:
        if is_deferred(info, "classes"):
            return self
        reading = [o.type for o in self.objectives if o.component.reads_teacher]  # type: ignore[union-attr]
        if reading and self.teacher is None:
            raise error_at(
                "objectives", f"{', '.join(reading)} read a teacher, and there is none; add teacher.networks"
            )
        if self.teacher is not None and not reading:
            raise error_at("teacher", "no objective reads it; add one such as kd, or remove the teacher")
        self._check_cache()
        self._check_weights()
        self._check_placement()
        heads = [o.type for o in self.objectives if o.component.sets_head]  # type: ignore[union-attr]
        if self.teacher is not None and len(heads) * len(self.teacher.networks) > 1:
            text = f"{', '.join(heads)} writes the student's head, which one term with one teacher can do"
            raise error_at("objectives", text)
        one_class = [o.type for o in self.objectives if o.needs_one_class]
        if one_class and self.augment.mix is not None:
            raise error_at(
                "augment.mix", f"{', '.join(one_class)} needs one class per image, but mixing gives an image two"
            )
        if self.fit_teacher is not None and self.teacher is None:
            raise error_at("fit_teacher", "there is no teacher to fit; add teacher.networks")
        batch, devices = self.data.batch_size, self.training.devices
        if batch % devices:
            raise error_at("data.batch_size", f"{batch} cannot be shared out evenly over {devices} training.devices")
        return self

    def _check_placement(self) -> None:
        """Refuse views by the loader's workers where there are none."""
        of_teacher = None if self.fit_teacher is None else self.fit_teacher.augment
        views = {"augment": self.augment, "fit_teacher.augment": of_teacher}
        for key, settings in views.items():
            if self.data.on_device and settings is not None and settings.placement == "loader":
                text = "data.on_device leaves the loader without workers; say device or auto"
                raise error_at(f"{key}.placement", text)

    def _check_weights(self) -> None:
        """What weighs samples or networks has somebody to ask, and objectives that listen."""
        curriculum, teacher = self.training.curriculum, self.teacher
        if self.fit_teacher is not None and self.fit_teacher.training.curriculum is not None:
            text = "it asks a teacher which samples are easy, and the teacher's own fit has none"
            raise error_at("fit_teacher.training.curriculum", text)
        if curriculum is not None and teacher is None:
            raise error_at("training.curriculum", "it asks a teacher which samples are easy, and there is none")
        if teacher is None:
            return
        weighting = teacher.weighting.type
        unsupported = [o for o in self.objectives if not o.component.weighs_samples]  # type: ignore[union-attr]
        if curriculum is not None and unsupported:
            text = f"{', '.join(o.type for o in unsupported)}: no mean over samples whose parts could be weighed"
            raise error_at("training.curriculum", text)
        unsupported = [o for o in unsupported if o.component.reads_teacher]  # type: ignore[union-attr]
        if weighting in ("confidence", "agreement") and unsupported:
            text = f"{weighting} is by sample, and {', '.join(o.type for o in unsupported)} is no mean over samples"
            raise error_at("teacher.weighting", f"{text}; fixed and learned weights work with every objective")
        if weighting == "learned" and self.student.compile:
            text = "weighting: learned needs a gradient for each of the teacher's networks, which compiled code refuses"
            raise error_at("student.compile", text)
        for n, network in enumerate(teacher.networks):
            if network.labels == "same":
                continue
            if self.fit_teacher is not None:
                text = "fit_teacher trains the network on the data's own classes; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)
            heads = [o.type for o in self.objectives if o.component.sets_head]  # type: ignore[union-attr]
            if heads:
                text = f"{', '.join(heads)} gives the student the teacher's head as it is; leave labels out"
                raise error_at(f"teacher.networks.{n}.labels", text)

    def _check_cache(self) -> None:
        """Refuse a cache that lacks something that is read of the teacher."""
        if self.teacher is None or self.teacher.cache is None:
            return
        components: list[Any] = [objective.component for objective in self.objectives]
        readers = {o.type: c.needs for o, c in zip(self.objectives, components) if c.reads_teacher}
        if self.teacher.weighting.type in ("confidence", "agreement"):
            readers["teacher.weighting"] = frozenset({"logits"})
        if self.training.curriculum is not None:
            readers["training.curriculum"] = frozenset({"logits"})
        if any(network.labels != "same" for network in self.teacher.networks):
            readers["teacher.networks.labels"] = frozenset({"logits"})
        for reader, needs in readers.items():
            lacking = needs - self.teacher.cache.holds
            if "maps" in lacking:
                text = f"{reader} reads the teacher's maps, which no cache holds; remove the cache"
                raise error_at("teacher.cache", text)
            if "logits" in lacking:
                text = f"{reader} reads the teacher's logits; say full, or the number of largest ones to keep"
                raise error_at("teacher.cache.logits", text)
            if "pooled" in lacking:
                raise error_at("teacher.cache.pooled", f"{reader} reads the teacher's pooled features; say true")


def as_distillation(experiment: Experiment, source: str) -> DistillationExperiment:
    """The experiment, which must be a distillation. Raises ``ConfigError`` that names where it comes from."""
    if not isinstance(experiment, DistillationExperiment):
        raise ConfigError(f"{source}: kind: {experiment.kind}, and this works on kind: distillation")
    return experiment
