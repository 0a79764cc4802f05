"""What an experiment's data holds, in a few lines: the opening of a run, and of ``distill data``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.data.base import UNLABELED, Split
from distill.data.experiment_data import ExperimentData

OTHERS: tuple[tuple[Split, str], ...] = (("val", "validation"), ("test", "test"))
_NAMED = 10
"""Largest number of classes whose images are counted one by one."""


def counts_line(data: ExperimentData) -> str:
    """``1,259 training images, 100 of them labeled, 179 for validation, 359 for test, 10 classes``."""
    images, labels = len(data.subset("train")), data.labeled_count
    parts = [f"{images:,} training images" if images != 1 else "1 training image"]
    if labels != images:
        parts.append(f"{f'{labels:,}' if labels else 'none'} of them labeled")
    for split, name in OTHERS:
        if data.has_split(split):
            unlabeled = bool(data.classes) and bool((data.subset(split).labels == UNLABELED).all())
            parts.append(f"{len(data.subset(split)):,} for {name}{' without labels' * unlabeled}")
        else:
            parts.append(f"none for {name}")
    if data.classes:
        parts.append(f"{len(data.classes)} class{'es' * (len(data.classes) != 1)}")
    return ", ".join(parts)


def detail_lines(data: ExperimentData) -> list[str]:
    """How the folders were read, the images of each class, those that a batch leaves out, and what was not read."""
    lines = [data.source.reading] if data.source.reading else []
    if data.classes and data.labeled_count:
        lines.append(f"labeled training images of each class: {class_counts(data)}")
    if left := left_out(data):
        images = f"{left} training image{'s' * (left > 1)}"
        lines.append(
            f"each epoch leaves out {images}, other ones every time: its last batch of {data.settings.batch_size} would"
            " be incomplete"
        )
    if data.source.skipped:
        lines.append("not read: " + "; ".join(map(str, data.source.skipped)))
    return lines


def left_out(data: ExperimentData) -> int:
    """Number of training images that an epoch does not use, since the incomplete last batch is dropped.

    0 for a balanced sampler, which draws images of small classes several times.
    """
    if data.settings.sampler == "balanced":
        return 0
    images, batch = len(data.subset("train")), data.settings.batch_size
    return images % min(batch, max(images // data.world_size * data.world_size, 1))


def class_counts(data: ExperimentData, split: Split = "train") -> str:
    """Labeled images of each class of a split: ``cat: 12, dog: 15``; if there are many classes, only the range."""
    counts = count_by_class(data, split)
    if len(counts) <= _NAMED:
        return ", ".join(f"{name}: {count:,}" for name, count in zip(data.classes, counts))
    few, many = int(np.argmin(counts)), int(np.argmax(counts))
    return f"{counts[few]:,} ({data.classes[few]}) to {counts[many]:,} ({data.classes[many]})"


def count_by_class(data: ExperimentData, split: Split) -> Sequence[int]:
    """Number of images of each class, with a label that is visible."""
    labels = data.subset(split).labels
    return np.bincount(labels[labels != UNLABELED], minlength=len(data.classes)).tolist()
