"""Domain adaptation: labels of a source domain, images of a target domain without labels.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Settings, error_at, is_deferred
from distill.experiments.student import ExportingExperiment
from distill.training.settings import TrainingSettings

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage

EMA = 0.99
"""Default of ``training.ema``."""


class TargetControls(Settings):
    """The controls that the student is compared with. All but the oracle take a pass over the images."""

    standardized: bool = Field(True, description="source only, with pooled features standardized by domain")
    adabn: bool = Field(True, description="source only, with batch-norm statistics of the target's images (AdaBN)")
    aligned: bool = Field(
        True, description="the same, with statistics of the target that are aligned with the source's"
    )
    mean: bool = Field(True, description="mean of the answers of standardized and aligned")
    oracle: bool = Field(
        False, description="the same student trained on the target's labels, as an upper bound; costs a fit"
    )


def refuse_choices(trainings: Mapping[str, TrainingSettings | None]) -> None:
    """Raise an error for settings by which a training would choose an epoch, by their keys in the config."""
    for key, training in trainings.items():
        if training is None:
            continue
        if training.keep == "best":
            raise error_at(f"{key}.keep", "best needs labels of the target; the last epoch is kept")
        if training.early_stop is not None:
            raise error_at(f"{key}.early_stop", "needs labels of the target; the length of training is fixed")
        if training.test_every is not None:
            raise error_at(f"{key}.test_every", "the target's test labels are read once, at the end")


class TargetDomainExperiment(ExportingExperiment):
    """The config of a domain adaptation: a source-only fit, statistics of the target, a fit on both domains."""

    has_target: ClassVar[bool] = True
    measures_statistics: ClassVar[bool] = True
    keeps_moments: ClassVar[bool] = True
    kind: Literal["target_domain"] = "target_domain"  # type: ignore[assignment]
    source_training: TrainingSettings | None = Field(
        None,
        description="training of the source-only student; default: as the student's, but an epoch of the source alone "
        "has at most half the updates of an epoch of both domains",
    )
    controls: TargetControls = TargetControls()

    def evaluated(self, data: ExperimentData) -> ExperimentData:
        return data.target_domain()

    def describe(self, data: ExperimentData) -> list[str]:
        target = data.target_domain()
        order = data.with_target().train_order()
        images = len(target.subset("train"))
        tested = f", {len(target.subset('test')):,} for test" if target.has_split("test") else ", none for test"
        line = f"target domain: {images:,} training images whose labels are not read{tested}; an epoch with both: "
        return [f"{line}{order.positions // order.batch:,} batches, half source and half target"]

    def plan(self) -> list[Stage]:
        from distill.stages.adapt_student import AdaptStudent
        from distill.stages.aligned_source import (
            AdaptStatistics,
            AlignStatistics,
            MeanOfNormalizations,
            StandardizeHead,
        )
        from distill.stages.evaluate_domains import EvaluateSource, EvaluateTarget, ScoreWithoutLabels
        from distill.stages.export_adapted import ExportAdapted
        from distill.stages.measure_domains import MeasureDomains
        from distill.stages.preview_domains import PreviewDomains
        from distill.stages.train_source import ExportSource, TrainOracle, TrainSource

        teachers, (ce, alone, plain) = self.plan_teacher(), self._source_only()
        training = self.source_training or self.training
        source = TrainSource("source", plain, (ce,), alone, training)
        moments = MeasureDomains("statistics", source.output)
        student = AdaptStudent(
            "student",
            student=self.student,
            objectives=self.objectives,
            augment=self.augment,
            training=self.training,
            teacher=self.teacher,
            networks=tuple(stage.output for stage in teachers),
            new_heads=self.fit_teacher is not None,
            source=source.output,
            moments=moments.output,
        )
        parts = source.output, moments.output
        standardized = StandardizeHead("standardized", *parts)
        adabn, of_both = AdaptStatistics("adabn", *parts), AlignStatistics("aligned", *parts)
        meant: list[Any] = [standardized, of_both] if self.controls.mean else []
        mean = [MeanOfNormalizations("mean", tuple(stage.output for stage in meant))] if meant else []
        controls: list[Any] = [standardized, adabn, of_both]
        shown = [stage for stage in controls if getattr(self.controls, stage.name)]
        aligned = [stage for stage in controls if stage in shown or stage in meant]
        oracle = [TrainOracle("oracle", plain, (ce,), alone, training)] if self.controls.oracle else []
        without_labels = [source, *shown, *mean, student]
        models = tuple(stage.output for stage in (*without_labels, *oracle))
        test = EvaluateTarget("test", models=models, student=student.output)
        on_source = EvaluateSource("source-test", source.output, student.output)
        scored = ScoreWithoutLabels("scores", tuple(stage.output for stage in without_labels))
        made = [
            source,
            moments,
            ExportSource("source-only", source.output, moments.output),
            *teachers,
            student,
            *aligned,
            *mean,
            *oracle,
            test,
            on_source,
            scored,
        ]
        last = self.plan_export(
            student.output, test.output, views=PreviewDomains, baseline="source only", export=ExportAdapted
        )
        return [*made, *last]

    def _source_only(self) -> tuple[Any, Any, Any]:
        """Cross-entropy, views and student of the source-only fit."""
        from distill.objectives.base import Schedule

        ce = next(own for own in self.objectives if own.type == "ce")
        ce = ce.model_copy(update={"weight": 1.0, "schedule": Schedule()})
        deltas = tuple(entry for entry in self.student.deltas if entry.type != "statistics")
        return ce, self.augment.alone(), self.student.model_copy(update={"deltas": deltas})

    @model_validator(mode="before")
    @classmethod
    def _averages_weights(cls, tree: Any) -> Any:
        """Set ``training.ema`` where it is left out: the result are averaged weights of the last epoch."""
        if not isinstance(tree, dict):
            return tree
        training = tree.get("training", {})
        if isinstance(training, dict):
            return {**tree, "training": {"ema": EMA, **training}}
        return tree

    @model_validator(mode="after")
    def _target_fits(self, info: ValidationInfo) -> Self:
        if is_deferred(info, "classes"):
            return self
        if self.data.target is None:
            raise error_at("data.target", "kind: target_domain trains on images of a target domain; name their source")
        refuse_choices({"training": self.training, "source_training": self.source_training})
        if not any(o.type == "ce" for o in self.objectives):
            raise error_at("objectives", "the source's labels are learned by ce; add it")
        if self.student.train == "full":
            text = "full: adaptation starts from the deltas of the source-only student; train deltas"
            raise error_at("student.train", text)
        if self.augment.mix is not None:
            raise error_at("augment.mix", "would mix images of the two domains; leave it out")
        if self.data.batch_size % (2 * self.training.devices):
            text = f"{self.data.batch_size}: half of a batch is of the target domain, on each device"
            raise error_at("data.batch_size", text)
        return self
