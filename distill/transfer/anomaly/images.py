"""Which images are normal: for the fit, for the threshold, and among those that are tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.data.base import UNLABELED, Split, source_at
from distill.data.experiment_data import ExperimentData
from distill.data.split import Subset
from distill.transfer.anomaly.base import AnomalyError
from distill.transfer.anomaly.settings import AnomalySettings

GOOD = ("good",)
"""The normal class of a test folder whose config names none."""


@dataclass(frozen=True)
class AnomalyImages:
    """The images of an anomaly detection.

    Args:
        normal: data whose ``train`` has the normal images of the fit, and ``val`` those of the threshold.
        tested: data whose ``test`` has the images to score; None: there are none with labels.
        is_normal: bool of each tested image, in the order of the subset.
        kinds: class of each tested image.
    """

    normal: ExperimentData
    tested: ExperimentData | None
    is_normal: np.ndarray
    kinds: Sequence[str]

    @classmethod
    def of(cls, data: ExperimentData, settings: AnomalySettings) -> AnomalyImages:
        """The images that the settings name.

        Raises:
            AnomalyError: no image is normal, none is held out, or the test has no class of the normal ones.
        """
        named = settings.normal if settings.test is None else None
        if named is not None:
            _check_classes(named, data.classes, "the data")
        fitted = _some(data, "train", named)
        if not len(fitted):
            hidden = data.settings.labels_per_class is not None
            why = ", whose labels data.labels_per_class hides" if hidden else ""
            raise AnomalyError(f"anomaly.normal: no training image{why} is of these classes")
        held_out = _some(data, "val", named) if data.has_split("val") else None
        if held_out is None or not len(held_out):
            raise AnomalyError(
                "anomaly.false_alarms: the threshold needs normal images that the fit has not seen, and none is held"
                " out; set data.val_fraction"
            )
        normal = data.part((), {"train": _plain(fitted), "val": _plain(held_out)}, data.seed)
        other, split = data, "test"
        if settings.test is not None:
            own = {"source": settings.test, "target": None, "val_fraction": 0.0, "labels_per_class": None}
            parts = data.seed, data.world_size, data.rank, data.device
            with source_at("anomaly.test"):
                other = ExperimentData(data.settings.model_copy(update=own), *parts)
            split = "test" if other.has_split("test") else "train"
            named = settings.normal or GOOD
            _check_classes(named, other.classes, "anomaly.test")
        if named is None or not other.has_split(split):  # type: ignore[arg-type]
            return cls(normal, None, np.empty(0, dtype=bool), ())
        subset = other.subset(split)  # type: ignore[arg-type]
        labeled = subset.where(subset.labels != UNLABELED)
        kinds = [other.classes[label] for label in labeled.labels]
        tested = other.part((), {"test": _plain(labeled)}, data.seed)
        return cls(normal, tested, np.array([kind in named for kind in kinds]), kinds)


def _check_classes(named: Sequence[str], classes: Sequence[str], where: str) -> None:
    missing = [name for name in named if name not in classes]
    if missing:
        raise AnomalyError(
            f"anomaly.normal: {where} has no class {missing[0]!r}, only {', '.join(classes) or 'images without labels'}"
        )


def _some(data: ExperimentData, split: Split, named: Sequence[str] | None) -> Subset:
    subset = data.subset(split)
    if named is None:
        return subset
    numbers = [list(data.classes).index(name) for name in named]
    return subset.where(np.isin(subset.labels, numbers))


def _plain(subset: Subset) -> Subset:
    return Subset(subset.samples, subset.indices, np.full_like(subset.labels, UNLABELED))
