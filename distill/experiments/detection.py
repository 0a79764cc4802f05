"""Detection: torchvision's detectors with a student, or another timm network, as backbone.

Importing this does not import torch. Validating a config that names a detector, deltas or operations does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationInfo, model_validator

from augment.base import Registry, Settings, error_at, is_deferred
from augment.presets import Recipe
from augment.recipe import Op
from distill.detection.settings import DetectorBackboneSettings
from distill.experiments.base import Experiment, check_unused

if TYPE_CHECKING:  # these import torch
    from distill.data.experiment_data import ExperimentData
    from distill.detection.detectors.base import Detector
    from distill.run.stage import Stage

    AnyDetector = Detector.Settings
else:
    AnyDetector = Annotated[Settings, Registry("distill.detection.detectors", "Detector")]

UNUSED_DATA = (
    "target",
    "size",
    "fit",
    "labels_per_class",
    "sampler",
    "loader_ops",
    "on_device",
    "depth",
    "corrupt_budget",
    "worker_timeout",
    "start_method",
)
UNUSED_TRAINING = (
    "accumulate",
    "precision",
    "curriculum",
    "ema",
    "quantize",
    "early_stop",
    "keep",
    "test_every",
    "devices",
    "spike",
)
"""Keys that mean nothing for a detector; another value than the default is an error."""


class DetectionControls(Settings):
    """What the detector is compared with."""

    undistilled: bool = Field(
        False,
        description="with backbone.start: the same detector on the pretrained network that the student was made from",
    )


def _flip() -> list[Op]:
    return [Op.of("RandomHorizontalFlip")]


class DetectionExperiment(Experiment):
    """The config of a detector: images with boxes, backbone, detector, augmentation, training."""

    kind: Literal["detection"] = "detection"  # type: ignore[assignment]
    backbone: DetectorBackboneSettings
    detector: AnyDetector
    augment: Recipe = Field(
        default_factory=_flip,
        description="operations on training images, in order; boxes follow those that move pixels, which must declare"
        " where to",
    )
    controls: DetectionControls = DetectionControls()

    def describe(self, data: ExperimentData) -> list[str]:
        from distill.detection.images import DetectionImages

        lines = []
        for split in ("train", "val", "test"):
            if data.has_split(split):  # type: ignore[arg-type]
                images = DetectionImages.of(data, split)  # type: ignore[arg-type]
                counts = ", ".join(f"{name} {count:,}" for name, count in zip(images.categories, images.counts()))
                empty = sum(not len(own) for own in images.objects)
                lines.append(f"boxes of {split}: {counts}" + (f"; {empty:,} images without any" if empty else ""))
        return lines

    def plan(self) -> list[Stage]:
        from distill.stages.evaluate_detectors import EvaluateDetectors
        from distill.stages.export_detector import ExportDetector
        from distill.stages.report import WriteReport
        from distill.stages.train_detector import TrainDetector

        parts = (self.detector, tuple(self.augment), self.training)
        student = TrainDetector("student", self.backbone, *parts)
        made = [student]
        if self.controls.undistilled:
            made.insert(0, TrainDetector("undistilled", self._undistilled(), *parts, row="undistilled"))
        test = EvaluateDetectors("test", tuple(stage.output for stage in made))
        export = ExportDetector("export", self.backbone, self.detector, student.output, test.output)
        return [*made, test, export, WriteReport("report")]

    def _undistilled(self) -> DetectorBackboneSettings:
        """The same backbone as it was before its distillation."""
        from distill.detection.backbone import resolved
        from distill.detection.errors import DetectionError
        from distill.models.settings import NetworkSettings

        network = resolved(self.backbone)
        if network.delta is None and self.backbone.network is None:
            raise DetectionError(
                "controls.undistilled: backbone.start is a whole network that does not tell what it was made from; set"
                " backbone.network to that"
            )
        own = self.backbone.network or NetworkSettings.model_validate(
            network.model_dump(include=set(NetworkSettings.model_fields))
        )
        return self.backbone.model_copy(update={"start": None, "network": own})

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> Self:
        sizes = [key for key in UNUSED_DATA if key in ("size", "fit")]
        why = "kind: detection does not use it"
        check_unused(self.data, sizes, f"{why}, detector.min_size and max_size resize images", "data.")
        check_unused(self.data, UNUSED_DATA, why, "data.")
        check_unused(self.training, UNUSED_TRAINING, why, "training.")
        if self.controls.undistilled and self.backbone.start is None:
            raise error_at("controls.undistilled", "backbone.start is not set, so nothing was distilled")
        if self.backbone.compile:
            raise error_at("backbone.compile", "images of a detector have many sizes; leave it out")
        if not is_deferred(info, "classes"):
            self._check_deltas()
        if not is_deferred(info, "operations"):
            self._check_operations()
        return self

    def _check_deltas(self) -> None:
        """Refuse deltas that choose or change their form by a classification loss."""
        from distill.deltas.base import Delta

        for n, entry in enumerate(self.backbone.deltas):
            method = entry.component
            assert method is not None and issubclass(method, Delta)
            if method.prepares(entry) or method.redefines("finish") or entry.type == "statistics":
                why = "chooses its form from a student's training on classes"
                raise error_at(
                    f"backbone.deltas.{n}", f"{entry.type} {why}; use one such as low_rank with a fixed rank"
                )

    def _check_operations(self) -> None:
        from augment.boxes import BoxChain
        from augment.names import OperationError

        for n, op in enumerate(self.augment):
            try:
                BoxChain([op])
            except OperationError as error:
                raise error_at(f"augment.{n}.{error.key}", str(error)) from error
