"""Detections, and their mean average precision as COCO computes it (pycocotools, the extra ``detection``)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from distill.detection.errors import DetectionError
from distill.detection.images import DetectionImages


@dataclass(frozen=True)
class Detections:
    """What a detector finds in the images of a split, in their order.

    Args:
        boxes: [M, 4] float32: left, top, right, bottom in pixels of the image as it is stored.
        labels: [M] int64, indices into the categories.
        scores: [M] float32 in [0, 1].
        images: [M] int64, row of the image that each is in; ascending.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    images: Tensor

    @classmethod
    def of(cls, detected: Sequence[dict[str, Tensor]]) -> Detections:
        """From what torchvision's detectors return for each image; their label 1 is category 0."""
        rows = [torch.full((len(own["labels"]),), row, dtype=torch.int64) for row, own in enumerate(detected)]
        parts = [torch.cat([own[name].cpu() for own in detected]) for name in ("boxes", "labels", "scores")]
        return cls(parts[0].float(), parts[1] - 1, parts[2].float(), torch.cat(rows))

    def tensors(self) -> dict[str, Tensor]:
        """By the names of the fields."""
        return {name: getattr(self, name).contiguous() for name in ("boxes", "labels", "scores", "images")}


@dataclass(frozen=True)
class Precision:
    """Average precisions in [0, 1].

    Args:
        map: mean over the categories and the IoU thresholds 0.5, 0.55, …, 0.95.
        map50: mean over the categories at IoU 0.5.
        map75: mean over the categories at IoU 0.75.
        by_category: (AP, AP at IoU 0.5) of each category; None for one without an object in the split.
    """

    map: float
    map50: float
    map75: float
    by_category: tuple[tuple[float, float] | None, ...]


def check_installed() -> None:
    """Raise ``DetectionError`` if pycocotools is not installed."""
    if find_spec("pycocotools") is None:
        raise DetectionError(
            "mean average precision needs pycocotools; install it with: pip install 'delta-distill[detection]'"
        )


def precision(detections: Detections, images: DetectionImages) -> Precision:
    """COCO's average precision (101 points of recall, at most 100 detections an image).

    Args:
        detections: of the images.
        images: with the objects that are there. Ignored ones count neither as found nor as missed.

    Returns:
        Means over the categories that have an object.

    Raises:
        DetectionError: pycocotools is not installed, or no image has an object.
    """
    check_installed()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not sum(images.counts()):
        raise DetectionError("the split has no object, so there is no precision")
    truth = COCO()
    truth.dataset = {
        "images": [{"id": row + 1} for row in range(len(images))],
        "categories": [{"id": number + 1} for number in range(len(images.categories))],
        "annotations": [],
    }
    for row, own in enumerate(images.objects):
        for corners, label, ignored in zip(own.corners, own.labels, own.ignored):
            box = _box(corners)
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": row + 1,
                    "category_id": int(label) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(ignored),
                }
            )
    detected = [
        {"image_id": int(row) + 1, "category_id": int(label) + 1, "bbox": _box(corners), "score": float(score)}
        for corners, label, score, row in zip(
            detections.boxes.double().numpy(), detections.labels, detections.scores, detections.images
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        if not detected:
            none = tuple((0.0, 0.0) if count else None for count in images.counts())
            return Precision(0.0, 0.0, 0.0, none)
        evaluation = COCOeval(truth, truth.loadRes(detected), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    values = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 detections
    return Precision(
        _mean(values),
        _mean(values[0]),
        _mean(values[5]),
        tuple(
            None if (values[:, :, k] < 0).all() else (_mean(values[:, :, k]), _mean(values[0, :, k]))
            for k in range(values.shape[2])
        ),
    )


def _mean(values: np.ndarray) -> float:
    """Of the defined values: COCO writes -1 where a category has no object."""
    return float(values[values >= 0].mean())


def _box(corners: np.ndarray) -> list[float]:
    left, top, right, bottom = map(float, corners)
    return [left, top, right - left, bottom - top]
