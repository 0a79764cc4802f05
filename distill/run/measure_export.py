"""Measures the exported formats of a run: their figures on the images of a split, beside the trained student's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from augment.base import is_import_path
from augment.chain import eval_view
from augment.views import InputSpec
from distill.data.base import UNLABELED, Split
from distill.export.compared import EAGER
from distill.export.logits import logits_of
from distill.export.measure import Measurement, measure_formats
from distill.export.settings import MeasureSettings
from distill.export.targets.base import ExportTarget
from distill.export.verify import NamedBackbone
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import FormatFigures
from distill.run.context import RunContext
from distill.training.measures import fraction

TOLERANCE = 1e-5
"""Of the live model with merged deltas."""


def measure_export(
    context: RunContext,
    settings: StudentSettings,
    student: Student,
    targets: Mapping[Path, ExportTarget],
    measure: MeasureSettings,
    delta: Path | None = None,
    live: bool = True,
) -> Iterator[FormatFigures]:
    """Measure formats on the test split, or on the validation split if there is none.

    Args:
        context: of the run, for the images; in a trial, everything runs in this process, and times mean nothing.
        settings: of the student.
        student: the live model.
        targets: folder → the target that wrote it.
        measure: how they are measured.
        delta: folder of the delta file; None: there is none.
        live: whether the live model is measured by itself too.

    Yields:
        The figures of the live model, then of each format.
    """
    split = next(split for split in _SPLITS if context.data.has_split(split))
    images, labels = labeled_images(context, split, student.input, measure.images)
    expected = logits_of(student.model)(images)
    made = measure_formats(
        targets,
        images,
        student.model,
        measure,
        delta=delta,
        backbone=NamedBackbone(network=settings.network, seed=context.seed),
        live=live,
        fresh=context.trial is None,
        allow_plugins=any(is_import_path(entry.type) for entry in settings.deltas),
    )
    names = iter([*([EAGER] if live else []), *(target.title for target in targets.values())])
    while True:
        context.stop.raise_if_received()
        with context.waiting(f"measuring {next(names, 'nothing')}"):
            measurement = next(made, None)
        if measurement is None:
            return
        yield figures_of(measurement, expected, labels, split, measure.threads)


_SPLITS: tuple[Split, ...] = ("test", "val", "train")


def labeled_images(context: RunContext, split: Split, spec: InputSpec, count: int | None) -> tuple[Tensor, Tensor]:
    """Evaluation views of a split, and its labels.

    Args:
        context: of the run.
        split: of the data.
        spec: size and normalization of the student's input.
        count: number of images, spread over the split; None: all.

    Returns:
        [N, C, H, W] fp32, normalized, and [N].
    """
    views, labels = [], []
    alone = context.loader(split, spec) if context.trial else context.data.eval_loader(split, shared=False, spec=spec)
    for batch in alone:
        views.append(eval_view(batch.images, spec).cpu())
        labels.append(batch.labels.cpu())
    images, of = torch.cat(views), torch.cat(labels)
    if count is None or count >= len(images):
        return images, of
    places = torch.linspace(0, len(images) - 1, count).round().long()  # splits are often sorted by class
    return images[places], of[places]


def figures_of(measurement: Measurement, live: Tensor, labels: Tensor, split: Split, threads: int) -> FormatFigures:
    """The figures of a measured format.

    Args:
        measurement: of the format, or of the live model.
        live: logits [N, K] of the live model.
        labels: [N] of the images.
        split: that they are from.
        threads: that the runtime was told to use.

    Returns:
        The figures.
    """
    target, logits = measurement.target, measurement.logits
    relative = ((logits - live).abs().max() / live.abs().max()).nan_to_num(torch.inf, torch.inf).clamp(max=1e30)
    same = int((logits.argmax(1) == live.argmax(1)).sum())
    labeled = labels != UNLABELED
    right = int((logits.argmax(1)[labeled] == labels[labeled]).sum())
    least = TOLERANCE if target is None else target.tolerance
    agreement = 1.0 if target is None else target.agreement
    return FormatFigures(
        name=EAGER if target is None else target.title,
        type="" if target is None else target.settings.type,
        images=len(live),
        split=split,
        relative_difference=float(relative),
        agreement=same / len(live),
        passed=float(relative) <= least and same >= agreement * len(live),
        accuracy=fraction(right, int(labeled.sum())) if labeled.any() else None,
        bytes=measurement.bytes,
        load_seconds=measurement.load_seconds,
        latencies=measurement.latencies,
        peak_bytes=measurement.peak_bytes,
        cores=measurement.cores,
        threads=threads,
        fixed_batch=getattr(target, "batch", None),
    )
