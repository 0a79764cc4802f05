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
    """How the folders were read, the images of each class, the batches of an epoch, and what was not read."""
    lines = [data.source.reading] if data.source.reading else []
    if data.classes and data.labeled_count:
        lines.append(f"labeled training images of each class: {class_counts(data)}")
    lines += missing_classes(data)
    lines.append(epoch_line(data))
    if data.source.skipped:
        lines.append("not read: " + "; ".join(map(str, data.source.skipped)))
    return lines


def epoch_line(data: ExperimentData) -> str:
    """``an epoch: 6 batches of 8, with all 41 images; 7 come twice, other ones each time, to fill the last batch``."""
    order = data.train_order()
    batches = order.positions // order.batch
    line = f"an epoch: {batches:,} batch{'es' * (batches > 1)} of {order.batch}"
    if data.settings.sampler == "balanced":
        return f"{line}, every class equally often; images of small classes come several times, augmented differently"
    line += f", with all {order.length:,} images"
    if more := order.most_repeats:
        line += f"; {more} come{'s' * (more == 1)} twice, other ones each time, to fill the last batch"
    return line


def missing_classes(data: ExperimentData) -> list[str]:
    """A line for each split for evaluation that has labels, but not of all classes."""
    lines = []
    for split, _ in OTHERS:
        counts = count_by_class(data, split) if data.classes and data.has_split(split) else []
        missing = [name for name, count in zip(data.classes, counts) if not count]
        if missing and any(counts):
            shown = ", ".join(missing[:_NAMED]) + (" …" if len(missing) > _NAMED else "")
            lines.append(f"{split} has no image of {len(missing)} of {len(counts)} classes: {shown}")
    return lines


def class_counts(data: ExperimentData, split: Split = "train") -> str:
    """Labeled images of each class of a split: ``cat: 12, dog: 15``; if there are many classes, only the range."""
    counts = count_by_class(data, split)
    if len(counts) <= _NAMED:
        return ", ".join(f"{name}: {count:,}" for name, count in zip(data.classes, counts))
    few, many = int(np.argmin(counts)), int(np.argmax(counts))
    if counts[few] == counts[many]:
        return f"{counts[few]:,}"
    return f"{counts[few]:,} ({data.classes[few]}) to {counts[many]:,} ({data.classes[many]})"


def count_by_class(data: ExperimentData, split: Split) -> Sequence[int]:
    """Number of images of each class, with a label that is visible."""
    labels = data.subset(split).labels
    return np.bincount(labels[labels != UNLABELED], minlength=len(data.classes)).tolist()
