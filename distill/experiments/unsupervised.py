"""Without labels: a student learns a teacher's features, and its features are clustered, voted on, or watched.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Settings, error_at, is_deferred
from distill.experiments.student import ExportingExperiment, uses_classifier
from distill.transfer.anomaly.settings import AnomalySettings

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.run.stage import Stage


class ClusterSettings(Settings):
    """k-means on the features of the training images."""

    k: int | None = Field(None, ge=2, description="number of clusters; default: that of the data's classes")


class NeighborSettings(Settings):
    """Votes of the nearest labeled training images, to score the features."""

    k: int = Field(20, ge=1, description="number of neighbors")
    temperature: float = Field(0.07, gt=0, description="a vote is exp(cosine / temperature)")


class UnsupervisedExperiment(ExportingExperiment):
    """The config of a student that is trained without labels, and of what its features are used for.

    Labels of the data, if it has any, are read to score clusters and neighbors, and to tell normal classes from others.
    Nothing is trained or chosen by them. The student has no classifier: its exports give pooled features. Without
    ``clusters``, ``knn`` and ``anomaly`` it is trained and exported, such as for the backbone of a detector.
    """

    measures_formats: ClassVar[bool] = False
    kind: Literal["unsupervised"] = "unsupervised"  # type: ignore[assignment]
    clusters: ClusterSettings | None = Field(None, description="none: no clusters")
    knn: NeighborSettings | None = Field(None, description="none: neighbors are not scored")
    anomaly: AnomalySettings | None = Field(None, description="none: no anomaly detection")

    def evaluated(self, data: ExperimentData) -> ExperimentData:
        from distill.stages.train_unlabeled import unlabeled

        return unlabeled(data)

    def describe(self, data: ExperimentData) -> list[str]:
        scored = data.labeled_count and (self.clusters is not None or self.knn is not None)
        lines = ["no label is trained on" + (": they only score the features" if scored else "")]
        if self.anomaly is not None:
            from distill.transfer.anomaly.images import AnomalyImages

            images = AnomalyImages.of(data, self.anomaly)
            counts = [len(images.normal.subset(split)) for split in ("train", "val")]  # type: ignore[arg-type]
            tested = "no image with a class to test them"
            if images.tested is not None:
                others = int((~images.is_normal).sum())
                tested = f"{int(images.is_normal.sum()):,} normal and {others:,} other images tested"
            lines.append(f"normal images: {counts[0]:,} to fit, {counts[1]:,} held out for the threshold; {tested}")
        return lines

    def plan(self) -> list[Stage]:
        from distill.stages.detect_anomalies import DetectAnomalies
        from distill.stages.pooled_features import PooledFeatures
        from distill.stages.score_clusters import ScoreClusters
        from distill.stages.train_unlabeled import TrainUnlabeled

        teachers = self.plan_teacher()
        student = TrainUnlabeled(
            "student",
            student=self.student,
            objectives=self.objectives,
            augment=self.augment,
            training=self.training,
            teacher=self.teacher,
            networks=tuple(stage.output for stage in teachers),
        )
        networks = [("backbone", self.student.network)]
        frozen = self.teacher.frozen if self.teacher is not None else ()
        names = ["teacher"] if len(frozen) == 1 else [f"teacher-{number}" for number in range(len(frozen))]
        networks += list(zip(names, frozen))
        made: list[Any] = [*teachers, student]
        if self.clusters is not None or self.knn is not None:
            of_networks = [PooledFeatures(f"features-{name}", ("train", "test"), own) for name, own in networks]
            features = [*of_networks, PooledFeatures("features-student", ("train", "test"), student=student.output)]
            scored = ScoreClusters(
                "scores",
                names=(*(name for name, _ in networks), "student"),
                models=tuple(stage.output for stage in features),
                split="test",
                clusters=None if self.clusters is None else self.clusters.k or 0,
                neighbors=None if self.knn is None else self.knn.k,
                temperature=NeighborSettings().temperature if self.knn is None else self.knn.temperature,
            )
            made += [*features, scored]
        if self.anomaly is not None:
            made.append(DetectAnomalies("anomaly", self.anomaly, student.output, tuple(networks)))
        last = made[-1].output if made[-1] is not student else None
        return [*made, *self.plan_export(student.output, last, classes=())]

    @model_validator(mode="after")
    def _needs_no_labels(self, info: ValidationInfo) -> Self:
        if self.fit_teacher is not None:
            raise error_at("fit_teacher", "a teacher is fitted on labels, and none are read")
        for key, value in {"keep": "last", "early_stop": None, "test_every": None}.items():
            if getattr(self.training, key) != value:
                raise error_at(f"training.{key}", "it chooses or measures by labels, and none are read")
        if is_deferred(info, "classes"):
            return self
        for n, objective in enumerate(self.objectives):
            if uses_classifier(objective):
                text = f"{objective.type} reads labels or logits, and this student has no classifier; dense, pooled and"
                raise error_at(f"objectives.{n}", f"{text} other objectives on features can be used")
        return self
