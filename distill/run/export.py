"""Exports a trained student, and verifies that the exported models have the student's outputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from augment.base import is_import_path
from augment.chain import eval_view
from augment.views import InputSpec
from distill.data.base import DataError, Split
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.delta.io import read_delta, save_delta
from distill.export.manifest import Preprocessing, Result
from distill.export.settings import BACKBONE, DELTA, REUSED_HEAD, ExportSettings
from distill.export.targets.base import About, CalibrationImages, ExportTarget
from distill.export.timm_transform import transform_difference
from distill.export.verify import NamedBackbone, verify
from distill.models.network import create_network
from distill.models.reused_head import enlargement
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import Check
from distill.run.context import RunContext

logger = logging.getLogger(__name__)
EXPORT = "export"
"""The folder of a run's exports."""
MEASURED = 32
"""Images on which timm's transform is compared with evaluation."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    sizes: dict[str, int]
    """Name of an exported file or model → bytes."""
    refused: dict[str, str]
    """Title of a target that cannot hold the student → reason."""
    skew: str = ""
    """By how much timm's transform differs from evaluation, if that is more than rounding, or it cannot be used."""


def export_student(
    context: RunContext,
    export: ExportSettings,
    student: Student,
    folder: Path,
    results: Sequence[Result],
    classes: Sequence[str] | None = None,
    keep: bool = False,
) -> Exported:
    """Write the delta file (unless every weight was trained) and each target that can hold the student.

    Args:
        context: of the run, for the class names and the canvas of the data.
        export: the targets.
        student: after its training.
        folder: where to write: ``delta/``, and a folder for each target.
        results: measured numbers to store in the files.
        classes: names of the student's classes; None: those of the data.
        keep: do not write a format again that is in ``folder`` and is what would be written.

    Returns:
        Sizes, and the targets that cannot hold the student.
    """
    prepared = preprocessing(context, student)
    apart = transform_difference(
        prepared,
        context.data.canvas(student.input),
        _images(context, context.trial.images if context.trial else MEASURED),
    )
    results = (*results, *(apart.results if apart else ()))
    names = tuple(context.data.classes if classes is None else classes)
    targets = export.make_targets()
    calibrates = any(target.calibrates for target in targets) and context.trial is None
    calibration = calibration_images(context, student.input, export.calibration_images) if calibrates else None
    about = About(student.network.origin, names, prepared, results, calibration=calibration)
    skew = apart.note if apart else ""
    if skew and context.trial is None:
        logger.warning("%s", skew)
    sizes, refused = {}, {}
    if not student.full:
        save_delta(folder / DELTA, student.model, student.backbone, **about.of_weights, stored=student.stored)
        sizes[DELTA] = (folder / DELTA / "delta.safetensors").stat().st_size
        backbone = backbone_state(student.model, classifier_names(student.model))
        sizes[BACKBONE] = sum(t.numel() * t.element_size() for t in backbone.values())
    for target in targets:
        to = folder / target.folder
        if (reason := target.unsupported(student.model)) is not None:
            refused[target.title] = reason
        elif context.trial is not None:
            target.rehearse(student.model, to, about)
        elif keep and (size := target.current(student.model, to, about)) is not None:
            sizes[target.title] = size
        else:
            sizes[target.title] = target.write(student.model, to, about)
    if (larger := enlargement(student.model)) is not None:
        sizes[REUSED_HEAD] = larger.bytes
    return Exported(sizes, refused, skew)


def _images(context: RunContext, count: int) -> list[np.ndarray]:
    """Images of the evaluation as they are decoded, spread over the split; without any, of training."""
    splits: tuple[Split, ...] = ("test", "val", "train")
    split = next(split for split in splits if context.data.has_split(split))
    subset = context.data.subset(split)
    places = np.linspace(0, len(subset) - 1, min(count, len(subset))).round().astype(int)
    images = []
    for place in places.tolist():
        try:
            images.append(subset[place].image)
        except DataError:
            if split != "train":
                raise
    return images


def calibration_images(context: RunContext, spec: InputSpec, count: int) -> CalibrationImages:
    """Evaluation views of training images, spread over the split.

    Args:
        context: of the run.
        spec: size and normalization of the student's input.
        count: number of images; all, if there are fewer.

    Returns:
        The views, and the names of the images.
    """
    subset = context.data.subset("train")
    places = np.linspace(0, len(subset) - 1, min(count, len(subset))).round().astype(int).tolist()
    pieces = [places[start : start + 32] for start in range(0, len(places), 32)]
    views = [eval_view(context.data.eval_batch("train", piece, spec).images, spec).cpu() for piece in pieces]
    ids = subset.ids
    return CalibrationImages(torch.cat(views), tuple(ids[place] for place in places))


def export_paths(export: ExportSettings, folder: Path) -> dict[str, Path]:
    """Name → folder, for the delta file and each target that was written to ``folder``."""
    paths = {DELTA: folder / DELTA, **{target.title: folder / target.folder for target in export.make_targets()}}
    return {name: path for name, path in paths.items() if path.is_dir()}


def preprocessing(context: RunContext, student: Student) -> Preprocessing:
    """How evaluation prepares an image, see :class:`distill.data.canvas.Canvas`."""
    mode = context.data.canvas(student.input).crop_mode
    declared = Preprocessing.of(student.model, student.input.size)
    return declared.model_copy(update={"crop_pct": 1.0, "crop_mode": mode, "interpolation": "bicubic"})


def verify_export(
    context: RunContext, settings: StudentSettings, export: ExportSettings, folder: Path, student: Student | None = None
) -> list[Check]:
    """Compare the exported models with each other and with ``student`` on real images, in a new process.

    If no target can hold the student, ``student`` is required: the delta file is compared with it.

    Args:
        context: of the run, for the images; in a trial, the models are loaded in this process.
        settings: of the student.
        export: the targets, and the number of images.
        folder: that :func:`export_student` wrote.
        student: in memory; None: only the exported models are compared.

    Returns:
        A check for each comparison.
    """
    written = written_targets(export, folder)
    targets = {path: target for path, target in written.items() if target.elsewhere() is None}
    delta = None if settings.train == "full" else folder / DELTA
    if student is not None:
        spec = student.input
    elif delta is not None:
        spec = read_delta(delta)[0].preprocessing.input
    else:
        spec = create_network(settings.network).input
    images = verification_images(context, spec, export.verify_images)
    report = verify(
        targets,
        images,
        delta=delta,
        make_backbone=None if delta is None else NamedBackbone(network=settings.network, seed=context.seed),
        model=student.model if student is not None else None,
        min_images=min(export.verify_images, len(images)),
        fresh=context.trial is None,
        allow_plugins=any(is_import_path(entry.type) for entry in settings.deltas),
    )
    hashes = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in report.hashes.items())
    checks = [Check(name="hashes", passed=True, detail=hashes)]
    for comparison in report.comparisons:
        detail = f"relative difference {comparison.relative_difference:.1e}, top-1 equal on {comparison.same_top1} of "
        checks.append(
            Check(
                name=f"{comparison.what} = {comparison.against}",
                passed=comparison.passed,
                detail=detail + f"{report.images} images",
            )
        )
    for path, target in written.items():
        if (reason := target.elsewhere()) is not None:
            detail = f"{target.check(path)[:12]}; its outputs are not compared: {reason}"
            checks.append(Check(name=f"hashes of {target.title}", passed=True, detail=detail))
    return checks


def written_targets(export: ExportSettings, folder: Path) -> dict[Path, ExportTarget]:
    """Folder → target, for each target that was written to ``folder``."""
    targets = {folder / target.folder: target for target in export.make_targets()}
    return {path: target for path, target in targets.items() if path.is_dir()}


def verification_images(
    context: RunContext, spec: InputSpec, count: int, splits: Sequence[Split] = ("test", "val", "train")
) -> Tensor:
    """Evaluation views of real images: at least ``count``, or all images if the data has fewer.

    Args:
        context: of the run.
        spec: size and normalization of the student's input.
        count: number of images.
        splits: where they come from: those of the first split first; splits that the data lacks are left out.

    Returns:
        [N, C, H, W] fp32, normalized.
    """
    views: list[Tensor] = []
    for split in filter(context.data.has_split, splits):
        # Only one rank verifies, and it needs the images of all ranks.
        alone = context.data.eval_loader(split, shared=False, spec=spec)
        for batch in context.loader(split, spec) if context.trial else alone:
            views.append(eval_view(batch.images, spec))
            if sum(len(view) for view in views) >= count:
                return torch.cat(views)
    return torch.cat(views)
