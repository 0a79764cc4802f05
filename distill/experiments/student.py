"""The base class of the experiments that train a student: views, teacher, student, objectives, and their rules.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, UserError, absolute, error_at, is_deferred
from augment.policy import AugmentSettings, plan_views
from augment.views import InputSpec
from distill.experiments.base import Experiment
from distill.export.settings import ExportSettings
from distill.models.settings import NetworkSettings, StudentSettings
from distill.models.teacher_settings import OF_STUDENT, TeacherSettings
from distill.training.settings import FitTeacherSettings
from distill.yaml_tree import ConfigError

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.models.student import Student
    from distill.objectives.base import Objective
    from distill.run.context import RunContext
    from distill.run.stage import Ref, Stage
    from distill.stages.evaluate import Evaluation
    from distill.stages.export import ExportedStudent, ExportStudent
    from distill.stages.outputs import TeacherNetworks, TrainedStudent
    from distill.stages.preview import PreviewViews

    AnyObjective = Objective.Settings
else:
    AnyObjective = Annotated[Settings, Registry("distill.objectives", "Objective")]


def uses_classifier(objective: Any) -> bool:
    """Whether an objective reads the labels or the student's logits, or sets its classifier."""
    method = objective.component
    return method.needs_labels or method.sets_head or "logits" in method.needs


class StudentExperiment(Experiment):
    """The config of an experiment that trains a student; a kind of run adds what it trains the student for.

    Class attributes:
        has_tasks: whether the student learns one task after the other, so that there is a previous model.
        measures_statistics: whether batch-norm statistics of a target domain are measured, for ``statistics`` deltas.
    """

    measures_statistics: ClassVar[bool] = False
    has_tasks: ClassVar[bool] = False
    augment: AugmentSettings = AugmentSettings()
    teacher: TeacherSettings | None = Field(
        None, description="none: the student is trained on labels alone, or self-supervised"
    )
    fit_teacher: FitTeacherSettings | None = Field(
        None, description="first train the teacher, once for all runs with equal settings"
    )
    student: StudentSettings
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)

    def plan_teacher(self) -> list[Stage[TeacherNetworks]]:
        """The stages that make the teacher's frozen networks; some commands run only these."""
        if self.teacher is None or not self.teacher.frozen:
            return []
        if self.fit_teacher is None:
            from distill.stages.pretrained_teacher import PretrainedTeacher

            return [PretrainedTeacher("teacher", self.teacher)]
        from distill.stages.fit_teacher import FitTeacher

        augment = self.fit_teacher.augment or self.augment.one_view().model_copy(update={"mix": None, "ramp": None})
        networks = self.teacher.frozen
        names = ["teacher"] if len(networks) == 1 else [f"teacher-{number}" for number in range(len(networks))]
        return [FitTeacher(name, network, self.fit_teacher, augment) for name, network in zip(names, networks)]

    @model_validator(mode="before")
    @classmethod
    def _student_takes_its_start(cls, tree: Any) -> Any:
        """Fill in the student's network and deltas from the delta file that it starts from."""
        student = tree.get("student") if isinstance(tree, dict) else None
        if not isinstance(student, dict) or not isinstance(start := student.get("start"), str | Path):
            return tree
        student = {**student, "start": str(absolute(str(start)))}
        if not {"network", "deltas"} <= student.keys():
            filled = tree_of_start(Path(student["start"]), "student.start", network="network" not in student)
            student = {**filled, **student}
        return {**tree, "student": student}

    @model_validator(mode="before")
    @classmethod
    def _networks_take_the_channels(cls, tree: Any) -> Any:
        """Set ``in_chans`` of the networks that leave it out, if the images have other than three channels."""
        data = tree.get("data") if isinstance(tree, dict) else None
        channels = data.get("channels", 3) if isinstance(data, dict) else 3
        if channels == 3:
            return tree
        return _at_networks(tree, lambda network: {"in_chans": channels, **network})

    @model_validator(mode="after")
    def _parts_belong_together(self, info: ValidationInfo) -> StudentExperiment:
        if is_deferred(info, "classes"):
            return self
        self._check_previous()
        reading = [o.type for o in self.objectives if o.component.reads_frozen()]  # type: ignore[union-attr]
        frozen = self.teacher.frozen if self.teacher is not None else ()
        if reading and not frozen:
            raise error_at(
                "objectives", f"{', '.join(reading)} need a teacher, and there is none; add teacher.networks"
            )
        if frozen and not reading:
            raise error_at("teacher", "no objective reads it; add one such as kd, or remove the teacher")
        self._check_momentum()
        comparing = [o.type for o in self.objectives if o.component.domain == "both"]  # type: ignore[union-attr]
        if comparing and self.data.target is None:
            named = ", ".join(comparing)
            text = f"two domains are compared ({named}), and there is one; set data.target (kind: target_domain)"
            raise error_at("objectives", text)
        if not is_deferred(info, "operations"):
            self._check_views()
        unweighable = [o for o in self.objectives if not o.component.weighs_samples]  # type: ignore[union-attr]
        if self.fit_teacher is not None:
            self.fit_teacher.check()
        if self.training.curriculum is not None:
            self.training.curriculum.check([o.type for o in unweighable], bool(frozen))
        if self.teacher is not None:
            heads = [o.type for o in self.objectives if o.component.sets_head]  # type: ignore[union-attr]
            self.teacher.check(heads, self.fit_teacher is not None)
            not_weighed = [o.type for o in unweighable if o.type in reading]
            self.teacher.weighting.check(not_weighed, self.student.compile)
            if self.teacher.cache is not None:
                self.teacher.cache.check(self._readers())
        networks: dict[str, NetworkSettings] = {"student.network": self.student.network}
        if self.teacher is not None:
            numbered = [(n, own) for n, own in enumerate(self.teacher.networks) if not own.of_student]
            networks |= {f"teacher.networks.{n}": own for n, own in numbered}
        for key, network in networks.items():
            if (network.in_chans or 3) != self.data.channels:
                text = f"the network takes {network.in_chans or 3}, and data.channels is {self.data.channels}"
                raise error_at(f"{key}.in_chans", text)
        weighted = [o for o in self.objectives if getattr(o, "class_weights", None) == "balanced"]
        if weighted and self.data.sampler == "balanced":
            text = "balanced, and ce.class_weights too: small classes would be favored twice; use one of the two"
            raise error_at("data.sampler", text)
        self.augment.check([o.type for o in self.objectives if o.needs_one_class])
        self._check_placement()
        if self.fit_teacher is not None and not frozen:
            raise error_at("fit_teacher", "there is no teacher to fit; add teacher.networks")
        batch, devices = self.data.batch_size, self.training.devices
        if batch % devices:
            raise error_at("data.batch_size", f"{batch} is not a multiple of training.devices, {devices}")
        return self

    def _check_previous(self) -> None:
        """Raise an error if the previous model is a teacher where there is none, or is named twice."""
        networks = self.teacher.networks if self.teacher is not None else ()
        numbers = [n for n, network in enumerate(networks) if network.is_previous]
        if numbers and not self.has_tasks:
            text = f"previous is the student before a task, and kind: {self.kind} has no tasks; use kind: continual"
            raise error_at(f"teacher.networks.{numbers[0]}.model", text)
        if len(numbers) > 1:
            raise error_at(f"teacher.networks.{numbers[1]}.model", "previous is among the networks already")

    def _check_momentum(self) -> None:
        """Raise an error if there is a momentum network and no objective reads it, or the other way round."""
        following = [o.type for o in self.objectives if o.component.reads_momentum]  # type: ignore[union-attr]
        momentum = self.teacher is not None and self.teacher.momentum is not None
        if following and not momentum:
            named = ", ".join(following)
            text = f"the momentum network is read ({named}); add {{model: momentum}} to teacher.networks"
            if any(o.component.domain == "target" for o in self.objectives if o.type in following):  # type: ignore[union-attr]
                text = f"an average of the student is read ({named}), and there is none; set teacher.ema"
            raise error_at("objectives", text)
        if momentum and not following:
            assert self.teacher is not None
            if self.teacher.ema is not None:
                raise error_at("teacher.ema", "no objective reads it; add one such as self_training, or remove it")
            text = "no objective reads the momentum network; add one such as byol, or remove it"
            raise error_at("teacher.networks", text)
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Raise an error if statistics of the target domain are asked for where there is none, or are not there."""
        entries = [n for n, entry in enumerate(self.student.deltas) if entry.type == "statistics"]
        if entries and not self.measures_statistics and self.student.start is None:
            text = f"kind: {self.kind} measures no statistics of a target domain; use kind: target_domain"
            raise error_at(f"student.deltas.{entries[0]}", text)
        if entries and not self.measures_statistics and self.student.start is not None:
            check_moved(self.student.start, f"student.deltas.{entries[0]}")
        averaged = None if self.teacher is None else self.teacher.ema
        if averaged is not None and averaged.normalizations and not entries:
            text = "the student has one normalization; add {type: statistics} to student.deltas"
            raise error_at("teacher.ema.normalizations", text)

    def _check_views(self) -> None:
        """Raise an error if the view policy lacks the views that an objective compares."""
        plan = plan_views(self.augment, InputSpec((8, 8)))
        for n, objective in enumerate(self.objectives):
            try:
                objective.component.check_views(objective.type, plan, self.augment.policy)  # type: ignore[union-attr]
            except ValueError as error:
                raise error_at("augment.policy", f"objectives.{n}: {error}") from error

    def _check_placement(self) -> None:
        """Raise an error if the loader's workers should make views and there are no workers."""
        of_teacher = None if self.fit_teacher is None else self.fit_teacher.augment
        views = {"augment": self.augment, "fit_teacher.augment": of_teacher}
        for key, settings in views.items():
            if self.data.on_device and settings is not None and settings.placement == "loader":
                text = "with data.on_device, the loader has no workers to make views; use device or auto"
                raise error_at(f"{key}.placement", text)

    def _readers(self) -> dict[str, frozenset[str]]:
        """Name of a component → the fields of the teacher's ``Features`` that it reads."""
        assert self.teacher is not None
        components: list[Any] = [objective.component for objective in self.objectives]
        readers = {o.type: c.needs for o, c in zip(self.objectives, components) if c.reads_frozen()}
        logits = frozenset({"logits"})
        if self.teacher.weighting.by_sample:
            readers["teacher.weighting"] = logits
        if self.training.curriculum is not None:
            readers["training.curriculum"] = logits
        if any(network.labels not in ("same", "numbers") for network in self.teacher.networks):
            readers["teacher.networks.labels"] = logits
        return readers


class ExportingExperiment(StudentExperiment):
    """The base class of the experiments whose result is one exported student.

    Class attributes:
        trained: file in the run folder that a finished training of the student has.
        keeps_moments: whether moments of the training images are measured and written beside the delta file, with which
            a later adaptation to other images aligns its batch-norm statistics.
        measures_formats: whether ``export.measure`` is possible: its exports have a logit for each class of its data.
    """

    trained: ClassVar[str] = "student/result.ckpt"
    keeps_moments: ClassVar[bool] = False
    measures_formats: ClassVar[bool] = True
    export: ExportSettings = ExportSettings()

    def evaluated(self, data: ExperimentData) -> ExperimentData:
        """The data that the student is evaluated on; by default those that it is trained on."""
        return data

    def plan_export(
        self,
        student: Ref[TrainedStudent],
        test: Ref[Evaluation] | None,
        classes: tuple[str, ...] | None = None,
        views: type[PreviewViews] | None = None,
        baseline: str = "linear probe",
        row: str = "student",
        export: Callable[..., ExportStudent] | None = None,
    ) -> list[Stage]:
        """The last stages: the student is exported, verified in a new process, its views are drawn, all is reported.

        Args:
            student: the trained student.
            test: its evaluation, whose numbers the files contain; None: it is not evaluated.
            classes: names of its classes; None: those of the data.
            views: stage that draws the views of its training; None: :class:`PreviewViews`.
            baseline: row that the student is compared with, by class.
            row: the student's row.
            export: makes the stage that exports it, from the arguments of :class:`ExportStudent`; None: this one.

        Returns:
            The stages.
        """
        from distill.stages.export import ExportStudent
        from distill.stages.preview import PreviewViews
        from distill.stages.report import WriteReport
        from distill.stages.verify import VerifyExport

        exported = (export or ExportStudent)("export", self.export, student, test, classes, self.keeps_moments)
        verify = VerifyExport("verify", self.student, self.export, student, exported.output)
        momentum = self.teacher is not None and self.teacher.momentum is not None
        preview = (views or PreviewViews)("preview", self.augment, student, self.training.accumulate, momentum)
        measured = self.plan_measuring(student, exported.output)
        return [exported, verify, *measured, preview, WriteReport("report", baseline, row)]

    def plan_measuring(self, student: Ref[TrainedStudent], exported: Ref[ExportedStudent]) -> list[Stage]:
        """The stage that measures the exported formats; none unless ``export.measure`` is set."""
        if self.export.measure is None:
            return []
        from distill.stages.measure_export import MeasureExport

        return [MeasureExport("measure", self.student, self.export, student, exported, self.evaluated)]

    @model_validator(mode="after")
    def _can_be_measured(self) -> ExportingExperiment:
        if self.export.measure is not None and not self.measures_formats:
            text = f"kind: {self.kind} exports no classifier of the classes of its data, so nothing is measured"
            raise error_at("export.measure", text)
        return self

    def load_student(self, context: RunContext, run: Path) -> Student:
        """The student of a finished run, from its trained weights.

        Args:
            context: of the run, for its classes.
            run: the run folder.

        Returns:
            The student.
        """
        from distill.run.prepare import StudentSpec, load_trained

        spec = StudentSpec(self.student, self.seed, len(context.data.classes))
        return load_trained(spec, (run / self.trained).parent)


def as_exporting(experiment: Experiment, source: str) -> ExportingExperiment:
    """The experiment, if its result is one student. Raises ``ConfigError``, whose text names ``source``, if not."""
    if not isinstance(experiment, ExportingExperiment):
        raise ConfigError(f"{source}: kind: {experiment.kind}, and this command needs a run that exports one student")
    return experiment


def tree_of_start(start: Path, key: str, network: bool = True, measures: bool = False) -> dict[str, Any]:
    """The key ``student`` of a student that has the network and the deltas of a delta file.

    Args:
        start: folder of the file, or of a run.
        key: that names it, for errors.
        network: whether the network is needed too.
        measures: whether the run measures statistics: the deltas then begin with ``statistics`` also where moments of
            the source lie beside the file, with which they are aligned.

    Returns:
        Plain values, see :func:`distill.run.from_delta.student_tree`.
    """
    from distill.export.delta.io import read_delta
    from distill.export.delta.source_moments import read_source_moments
    from distill.run.from_delta import delta_folder, deltas_tree, student_tree

    try:
        folder = delta_folder(start)
        manifest, tensors = read_delta(folder)
        moved = any(name.startswith("moved/") for name in tensors)
        moved = moved or (measures and bool(read_source_moments(folder)))
        return student_tree(manifest, moved) if network else {"deltas": deltas_tree(manifest, moved)}
    except UserError as error:
        raise error_at(key, str(error)) from error


def check_moved(start: Path, key: str) -> None:
    """Raise an error at ``key``, a statistics delta, if the delta file in ``start`` has no statistics to fill it."""
    from distill.export.delta.io import read_delta
    from distill.run.from_delta import delta_folder

    try:
        _, tensors = read_delta(delta_folder(start))
    except UserError as error:
        raise error_at("student.start", str(error)) from error
    if not any(name.startswith("moved/") for name in tensors):
        raise error_at(key, f"{start} has the batch-norm statistics of its backbone, and nothing measures others")


def _at_networks(tree: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """A copy of a config's plain values with the settings of every network changed."""
    student, teacher = tree.get("student"), tree.get("teacher")
    if isinstance(student, dict) and isinstance(student.get("network"), dict):
        tree = {**tree, "student": {**student, "network": change(student["network"])}}
    if isinstance(teacher, dict) and isinstance(teacher.get("networks"), list | tuple):
        changed = [
            change(network) if isinstance(network, dict) and network.get("model") not in OF_STUDENT else network
            for network in teacher["networks"]
        ]
        tree = {**tree, "teacher": {**teacher, "networks": changed}}
    return tree
