"""Trains a detector on a backbone that is frozen, has deltas, or is trained as a whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from augment.boxes import BoxChain
from augment.recipe import Op
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.detection.backbone import Level, resolved
from distill.detection.detector import BuiltDetector, build_detector
from distill.detection.detectors.base import Detector
from distill.detection.errors import DetectionError
from distill.detection.fit import DetectorFit, FitOf, fit_detector, load_fit
from distill.detection.images import DetectionImages, TrainBatches, train_item
from distill.detection.score import check_installed, precision
from distill.detection.settings import DetectorBackboneSettings
from distill.models.fingerprint import fingerprint
from distill.models.teacher_settings import TeacherNetworkSettings
from distill.report.curves import read_curves
from distill.report.items import Curve, Item, Note
from distill.run.context import RunContext
from distill.run.stage import Stage
from distill.run.teacher_network import check_file, make_network
from distill.run.trial import trying
from distill.training.loggers import check_loggers
from distill.training.settings import TrainingSettings

logger = logging.getLogger(__name__)

STEP_IMAGES = 2
"""Images of the step that checks a detector before training."""


@dataclass(frozen=True)
class TrainedDetector:
    """A detector after its fit.

    Args:
        name: of its row.
        what: a few words about it.
        built: the detector.
        network: that its backbone was made from.
        fit: summary.
        folder: of the fit.
    """

    name: str
    what: str
    built: BuiltDetector
    network: TeacherNetworkSettings
    fit: DetectorFit
    folder: Path


def small_objects(images: DetectionImages, settings: Detector.Settings, shallowest: Level) -> Iterator[str]:
    """Each category most of whose objects are too small for the detector, and what to do about it.

    Args:
        images: of training.
        settings: of the detector.
        shallowest: of the maps that it reads.

    Yields:
        A sentence for each category.
    """
    made: Detector = settings.component(settings)  # type: ignore[misc]
    smallest = made.smallest_box(shallowest.stride)
    for category, sides in zip(images.categories, images.sides(settings.min_size, settings.max_size)):
        small = int((sides < smallest).sum())
        if 2 * small > len(sides):
            yield (
                f"{category}: {small:,} of {len(sides):,} objects are smaller than {smallest:.0f} pixels in images of "
                f"{settings.min_size}, too small for the anchors or points of {shallowest.stage} (stride "
                f"{shallowest.stride}); begin detector.levels with a smaller stride, or raise detector.min_size"
            )


@dataclass(frozen=True)
class TrainDetector(Stage[TrainedDetector]):
    """Trains a detector.

    Args:
        backbone: the network, and what of it is trained.
        detector: type, pyramid, sizes of the images.
        augment: operations on training images; those that move pixels move the boxes.
        training: epochs, optimizer, schedule.
        row: name of the detector in tables and curves.
    """

    backbone: DetectorBackboneSettings
    detector: Detector.Settings
    augment: tuple[Op, ...]
    training: TrainingSettings
    row: str = "student"

    def check_files(self) -> None:
        check_file(resolved(self.backbone), "backbone")

    def check(self, context: RunContext) -> TrainedDetector:
        """Read all boxes and the sizes of all images, and try a step on two images."""
        check_installed()
        check_loggers(self.training.loggers)
        train = DetectionImages.of(context.data, "train")
        if not sum(train.counts()):
            raise DetectionError(f"{self.name}: no training image has an object to learn from")
        for split in ("train", "val", "test"):
            if context.data.has_split(split):  # type: ignore[arg-type]
                images = DetectionImages.of(context.data, split)  # type: ignore[arg-type]
                if not context.images_read:
                    images.check_sizes()
        with trying(f"{self.name}: building the detector"):
            built, network = self._built(context)
        for text in small_objects(train, self.detector, built.levels[0]):
            logger.warning("%s: %s", self.name, text)
        with trying(f"{self.name}: one training step"):
            batch = [train_item(train, row, self._chain(), context.seed, 0) for row in train.few(STEP_IMAGES)]
            module = built.module.to(context.device).train()
            torch.stack([*built.losses(batch, context.device).values()]).sum().backward()
            module.zero_grad()
            built.detect(train, train.few(1), context.device, 1)
        return TrainedDetector(self.row, self._what(train), built, network, DetectorFit(0, 0, 0.0), Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        network = make_network(resolved(self.backbone), 0)
        return {
            "backbone": self.backbone.model_dump(mode="json", exclude={"start"}),
            "weights": fingerprint(backbone_state(network.model, classifier_names(network.model))).sha256,
            "detector": self.detector.model_dump(mode="json"),
            "augment": [op.model_dump(mode="json") for op in self.augment],
            "training": self.training.model_dump(mode="json"),
            "data": [context.data.fingerprint(), context.data.settings.model_dump(mode="json")],
            "boxes": DetectionImages.of(context.data, "train").digest(),
        }

    def run(self, context: RunContext, folder: Path) -> TrainedDetector:
        train = DetectionImages.of(context.data, "train")
        built, network = self._built(context)
        fit = fit_detector(built, self._fit_of(context, train, built), folder, self.name, context.stop, context.console)
        return TrainedDetector(self.row, self._what(train), built, network, fit, folder)

    def load(self, context: RunContext, folder: Path) -> TrainedDetector:
        built, network = self._built(context)
        what = self._what(DetectionImages.of(context.data, "train"))
        return TrainedDetector(self.row, what, built, network, load_fit(built, folder), folder)

    def report(self, context: RunContext, output: TrainedDetector) -> Iterable[Item]:
        if (log := output.folder / "log.csv").is_file():
            yield Curve(name=output.name, log=read_curves(log))
        for text in small_objects(DetectionImages.of(context.data, "train"), self.detector, output.built.levels[0]):
            yield Note(text=text)
        if output.built.student.network.notes:
            yield from (Note(text=note) for note in output.built.student.network.notes)

    def _built(self, context: RunContext) -> tuple[BuiltDetector, TeacherNetworkSettings]:
        settings = resolved(self.backbone)
        categories = DetectionImages.of(context.data, "train").categories
        network = make_network(settings, 0)
        return build_detector(network, self.backbone, self.detector, categories, context.seed), settings

    def _chain(self) -> BoxChain:
        return BoxChain(self.augment)

    def _fit_of(self, context: RunContext, train: DetectionImages, built: BuiltDetector) -> FitOf:
        settings, validate = context.data.settings, None
        val = DetectionImages.of(context.data, "val") if context.data.has_split("val") else None
        if val is not None and any(val.counts()):

            def validate() -> dict[str, float]:
                detected = built.detect(val, range(len(val)), context.device, settings.batch_size)
                return {"val/map50": precision(detected, val).map50}

        batches = TrainBatches(train, context.data.train_order(), self._chain(), context.seed, settings.workers)
        return FitOf(batches, self.training, context.device, validate)

    def _what(self, train: DetectionImages) -> str:
        objects = sum(train.counts())
        return f"{self.detector.type}, backbone {self.backbone.way}, {objects:,} boxes in {len(train):,} images"
