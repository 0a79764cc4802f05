"""A detector as a run trains it: backbone, pyramid and head, and which of its tensors are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.detection.backbone import Level, Pyramid, levels_of, make_student
from distill.detection.detectors.base import Detector
from distill.detection.images import DetectionImages, Objects, evaluation_item
from distill.detection.score import Detections
from distill.detection.settings import DetectorBackboneSettings
from distill.models.network import Network
from distill.models.student import Student

STUDENT = "backbone.student."
"""What the names of the backbone's tensors begin with."""


@dataclass(frozen=True)
class BuiltDetector:
    """A detector and its parts.

    Args:
        module: torchvision's, with a :class:`Pyramid` as ``backbone``.
        student: the backbone.
        levels: the maps that are read.
        categories: names of the objects' classes; label 1 is the first.
    """

    module: nn.Module
    student: Student
    levels: tuple[Level, ...]
    categories: tuple[str, ...]

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name in the module: all but the frozen ones of the backbone."""
        of_student = {STUDENT + name for name in self.student.own_state()}
        return {
            name: tensor
            for name, tensor in self.module.state_dict().items()
            if not name.startswith(STUDENT) or name in of_student
        }

    def parts(self) -> list[nn.Module]:
        """The modules that are new: pyramid and heads. ``head_lr_factor`` multiplies their learning rate."""
        pyramid: Any = self.module.backbone
        return [pyramid.fpn, *(part for name, part in self.module.named_children() if name != "backbone")]

    def losses(self, batch: Sequence[tuple[Tensor, Objects]], device: torch.device) -> dict[str, Tensor]:
        """The loss terms of a batch, in training mode."""
        images = [image.to(device) for image, _ in batch]
        targets = [{"boxes": own.boxes.to(device), "labels": own.labels.to(device)} for _, own in batch]
        terms: dict[str, Tensor] = self.module(images, targets)
        return terms

    @torch.no_grad()
    def detect(self, images: DetectionImages, rows: Sequence[int], device: torch.device, batch: int) -> Detections:
        """What it finds in some images; row 0 of the result is the first of ``rows``.

        Args:
            images: of a split.
            rows: of the images.
            device: to compute on.
            batch: images at once. The border that smaller images get in a batch may change a score in its last digits.

        Returns:
            The detections of all of them.
        """
        training = self.module.training
        self.module.to(device).eval()
        detected: list[dict[str, Tensor]] = []
        try:
            for start in range(0, len(rows), batch):
                loaded = [evaluation_item(images, row).to(device) for row in rows[start : start + batch]]
                detected += self.module(loaded)
        finally:
            self.module.train(training)
        return Detections.of(detected)


def build_detector(
    network: Network,
    backbone: DetectorBackboneSettings,
    settings: Detector.Settings,
    categories: Sequence[str],
    seed: int,
) -> BuiltDetector:
    """A detector before training; equal for equal settings and seeds.

    Args:
        network: without classifier; changed in place.
        backbone: what of it is trained.
        settings: of the detector.
        categories: names of the objects' classes.
        seed: of the new weights.

    Returns:
        The detector and its parts, on the CPU.

    Raises:
        DetectionError: the network has no maps that the detector can read.
        NetworkError: its maps cannot be computed.
        DeltaError: a delta fits none of its layers.
    """
    method = settings.component
    assert method is not None and issubclass(method, Detector)
    detector = method(settings)
    levels = levels_of(network, detector.first_stride, settings.levels)
    student = make_student(network, backbone, seed)
    torch.manual_seed(seed)
    pyramid = Pyramid(student, levels, settings.channels, detector.extra_levels())
    strides = detector.strides([level.stride for level in levels])
    module = detector.build(pyramid, strides, len(categories) + 1, network.input)
    return BuiltDetector(module, student, tuple(levels), tuple(categories))
