"""Source-free adaptation: a delta file and unlabeled images give a new delta file.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import absolute, error_at, is_deferred
from distill.experiments.student import ExportingExperiment, tree_of_start
from distill.experiments.target_domain import EMA, refuse_choices
from distill.yaml_tree import ConfigError

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage


class SourceFreeExperiment(ExportingExperiment):
    """The config of an adaptation without source images.

    ``data.source`` has the images of the target domain. Their training labels are not read; a test split with labels is
    evaluated. ``student`` is that of the delta file, unless it is given, with a ``statistics`` delta before its deltas
    if its batch-norm statistics moved, or if moments of the source lie beside the file
    (:mod:`distill.export.delta.source_moments`): the statistics of the new images are aligned with them. Without
    moments they replace the network's.
    """

    measures_statistics: ClassVar[bool] = True
    keeps_moments: ClassVar[bool] = True
    kind: Literal["source_free"] = "source_free"  # type: ignore[assignment]
    start: Path = Field(description="folder of a delta file, or of a run that exported one")

    @cached_property
    def delta(self) -> Path:
        """The folder of the delta file."""
        from distill.run.from_delta import delta_folder

        return delta_folder(self.start)

    def evaluated(self, data: ExperimentData) -> ExperimentData:
        return data.as_target(self._classes)

    def describe(self, data: ExperimentData) -> list[str]:
        own = data.as_target(self._classes)
        tested = f"{len(own.subset('test')):,} for test" if own.has_split("test") else "none for test"
        return [f"target domain: {len(own.subset('train')):,} training images whose labels are not read, {tested}"]

    def plan(self) -> list[Stage]:
        from distill.export.delta.io import read_delta
        from distill.export.delta.source_moments import read_source_moments
        from distill.stages.adapt_student import AdaptStudent
        from distill.stages.aligned_source import AdaptStatistics, AlignStatistics
        from distill.stages.evaluate_domains import EvaluateTarget, ScoreWithoutLabels
        from distill.stages.export_adapted import ExportAdapted
        from distill.stages.load_start import LoadStart
        from distill.stages.measure_domains import MeasureDomains

        if not read_delta(self.delta)[0].num_classes:
            text = "its student has no classifier, and an adaptation changes how images are classified"
            raise ConfigError(f"start: {self.delta}: {text}; distill adapt --statistics changes statistics alone")
        teachers, classes = self.plan_teacher(), self._classes
        start = LoadStart("start", self.delta, self.student)
        moments = MeasureDomains("statistics", start.output, classes, self.delta)
        student = AdaptStudent(
            "student",
            student=self.student,
            objectives=self.objectives,
            augment=self.augment,
            training=self.training,
            teacher=self.teacher,
            networks=tuple(stage.output for stage in teachers),
            source=start.output,
            moments=moments.output,
            classes=classes,
        )
        controls: list[Any] = [AdaptStatistics("adabn", start.output, moments.output)]
        if read_source_moments(self.delta):
            controls.append(AlignStatistics("aligned", start.output, moments.output))
        models: tuple[Any, ...] = (start.output, *(stage.output for stage in controls), student.output)
        test = EvaluateTarget("test", models=models, student=student.output, classes=classes)
        scored = ScoreWithoutLabels("scores", models, classes)
        made: list[Stage] = [start, moments, *teachers, student, *controls, test, scored]
        export = partial(ExportAdapted, target=classes)
        return [*made, *self.plan_export(student.output, test.output, classes, baseline="as given", export=export)]

    @property
    def _classes(self) -> tuple[str, ...]:
        """Names of the classes of the delta file; empty if it has none."""
        from distill.export.delta.io import read_delta

        return read_delta(self.delta)[0].labels

    @model_validator(mode="before")
    @classmethod
    def _takes_the_students_settings(cls, tree: Any, info: ValidationInfo) -> Any:
        if not isinstance(tree, dict):
            return tree
        if isinstance(training := tree.get("training", {}), dict):
            tree = {**tree, "training": {"ema": EMA, **training}}
        if isinstance(start := tree.get("start"), str | Path):
            tree = {**tree, "start": str(absolute(str(start)))}
            if "student" not in tree:
                tree["student"] = tree_of_start(Path(tree["start"]), "start", measures=True)
        return tree

    @model_validator(mode="after")
    def _needs_no_labels(self, info: ValidationInfo) -> Self:
        if is_deferred(info, "classes"):
            return self
        refuse_choices({"training": self.training})
        for n, objective in enumerate(self.objectives):
            if objective.component.needs_labels:  # type: ignore[union-attr]
                text = f"{objective.type} learns from labels, and no label of these images is read"
                raise error_at(f"objectives.{n}", text)
        if self.student.start is not None:
            raise error_at("student.start", "the student starts from the delta file of start; leave it out")
        if self.student.train == "full":
            raise error_at("student.train", "full: the deltas of the file are trained further")
        if self.fit_teacher is not None:
            raise error_at("fit_teacher", "a teacher is fitted on labels, and none are read")
        return self
