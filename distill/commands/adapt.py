"""``distill adapt``: a new delta file from a delta file and unlabeled images of another domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from augment.console import shown_path
from distill.commands.target_folder import check_target
from distill.config import merge_trees, validate_tree
from distill.data.experiment_data import ExperimentData
from distill.deltas.statistics import Statistics
from distill.experiments.source_free import SourceFreeExperiment
from distill.experiments.student import tree_of_start
from distill.export.checksummed import ExportError
from distill.export.delta.io import TENSORS, DeltaManifest, read_delta, save_delta, write_delta_files
from distill.export.delta.source_moments import read_source_moments, write_source_moments
from distill.models.emulator import ARCHITECTURE as EMULATOR
from distill.models.student import Student
from distill.run.context import open_context
from distill.run.folder import unfinished
from distill.run.from_delta import delta_folder, student_from_delta
from distill.run.runner import run_plan
from distill.stages.measure_domains import UNALIGNED, aligned_all
from distill.transfer.moments import batch_norm_inputs, batch_norm_moments, batch_norms_of
from distill.transfer.start import Moments
from distill.yaml_tree import apply_override

RUN = "run"
"""Folder of the run, in that of the new delta file."""
DEFAULTS: dict[str, Any] = {
    "kind": "source_free",
    "name": RUN,
    "data": {"batch_size": 32, "workers": 1, "val_fraction": 0},
    "augment": {  # without a flip, since classes may be mirror images of each other
        "policy": "weak_teacher",
        "teacher": [{"type": "RandomResizedCrop", "scale": [0.8, 1.0]}],
        "student": [
            {"type": "RandomResizedCrop", "scale": [0.5, 1.0]},
            {"type": "ColorJitter", "brightness": 0.2, "contrast": 0.2, "p": 0.5},
        ],
    },
    "teacher": {"ema": {"decay": 0.99}},
    "objectives": [
        {"type": "information_max", "weight": 0.5},
        {"type": "self_training", "threshold": 0.8, "balance": 0, "schedule": {"start": 0.5, "warmup": 0.5}},
    ],
    "training": {
        "epochs": 3,
        "optimizer": {"type": "adamw", "lr": 3e-4, "weight_decay": 0.01, "head_lr_factor": 0.1},
        "schedule": {"type": "cosine", "warmup": 0.25},
    },
    "export": {"targets": []},
}
"""The config of the run, where nothing else is given."""
AGAIN = "the same command"
"""What continues an interrupted run."""
KEPT = {"sha256", "packed", "schema_version", "made_by", "manifest_sha256"}
"""Fields of a manifest that a new file has of its own."""


def adapt(
    start: Path,
    images: Path,
    to: Path,
    statistics: bool,
    overrides: Sequence[str],
    console: Console,
    force: bool = False,
) -> None:
    """Adapt a delta file to the images of a folder, and write a new one. An interrupted run is continued.

    Args:
        start: folder of a delta file, or of a run.
        images: folder of images of the target domain; subfolders may be classes, whose names are not read.
        to: folder of the new delta file; the run is in its subfolder ``run``.
        statistics: replace the batch-norm statistics alone, and train nothing.
        overrides: ``key.path=value`` of the config.
        console: where to print.
        force: whether ``to`` may hold other files.

    Raises:
        ExportError: the delta file is damaged, its backbone cannot be made, or ``to`` is not empty.
        DataError: the images cannot be used.
    """
    delta = delta_folder(start)
    manifest, _ = read_delta(delta)
    size = manifest.preprocessing.input_size[1]
    data = {"source": {"type": "folder", "root": str(images)}, "size": size}
    data["channels"] = manifest.preprocessing.input_size[0]
    norms = read_source_moments(delta)
    own: dict[str, Any] = {"start": str(delta), "output": str(to), "data": data}
    if manifest.origin != "random" and manifest.architecture != EMULATOR:  # whose network the overrides must name
        own["student"] = tree_of_start(delta, "start", measures=True)
        if norms and any(entry["type"] == "statistics" for entry in own["student"]["deltas"]):
            own["teacher"] = {"ema": {"normalizations": ["source", "target"]}}
    tree = merge_trees(deepcopy(DEFAULTS), own)
    for override in overrides:
        apply_override(tree, override)
    experiment = validate_tree(tree, "distill adapt")
    assert isinstance(experiment, SourceFreeExperiment)
    settings = experiment.model_dump(mode="json")
    begun = None if statistics else unfinished(to, settings)
    if begun is None:
        check_target(to, force)
    if statistics:
        count = _replace_statistics(experiment, manifest, norms, to)
        _tell(console, delta, to, f"batch-norm statistics of {count:,} images", manifest, norms)
        return
    run = run_plan(experiment, experiment.plan(), settings, resume=begun or False, console=console, continued_by=AGAIN)
    made, tensors = read_delta(run / "export" / "delta")
    with open_context(experiment) as context:
        count = len(context.data.as_target(manifest.labels).subset("train"))
    about = {name: value for name, value in made if name not in KEPT}
    write_delta_files(to, tensors, **about, made_by=_made_by(manifest, count))
    write_source_moments(to, read_source_moments(run / "export" / "delta"))
    epochs = experiment.training.epochs
    what = f"{epochs} epoch{'' if epochs == 1 else 's'} on {count:,} images"
    _tell(console, delta, to, what, manifest, norms)


def _replace_statistics(
    experiment: SourceFreeExperiment, manifest: DeltaManifest, norms: Mapping[str, Moments], to: Path
) -> int:
    """Write a delta file with the batch-norm statistics of the images, and moments of these images beside it.

    Args:
        experiment: of the adaptation.
        manifest: of the delta file.
        norms: moments of the source's images, with which the statistics are aligned; empty: they are not.
        to: folder of the new delta file.

    Returns:
        The number of images.
    """
    if not _normalizes(manifest):
        raise ExportError(f"{experiment.delta}: its backbone has no batch norms, so there are no statistics to replace")
    entries = [entry for entry in experiment.student.deltas if entry.type != "statistics"]
    settings = experiment.student.model_copy(update={"deltas": (Statistics.Settings(), *entries)})
    student, _ = student_from_delta(experiment.delta, settings)
    with open_context(experiment) as context:
        target = replace(context, data=context.data.as_target(manifest.labels)).data
        loader = target.train_loader(shared=False)
        try:
            moments = batch_norm_moments(student, loader, context.device, norms or None)
        finally:
            loader.close()
        if norms:
            moments = aligned_all(student, norms, moments)
        for site in student.sites:
            if isinstance(site.delta, Statistics):
                site.delta.fill(*moments[site.name])
        measured = _moments_with(student, target, context.device)
        count = len(target.subset("train"))
    save_delta(
        to,
        student.model,
        student.backbone,
        origin=manifest.origin,
        labels=manifest.labels,
        preprocessing=manifest.preprocessing,
        model_args=manifest.model_args,
        made_by=_made_by(manifest, count),
    )
    write_source_moments(to, measured)
    return count


def _moments_with(student: Student, target: ExperimentData, device: torch.device) -> dict[str, Moments]:
    """What the batch norms read with the new statistics: a later adaptation aligns with it."""
    loader = target.train_loader(shared=False)
    try:
        return batch_norm_inputs(student, loader, device, batch_norms_of(student.model))
    finally:
        loader.close()


def _made_by(manifest: DeltaManifest, count: int) -> str:
    return f"adapt: {manifest.sha256} on {count} unlabeled images"


def _normalizes(manifest: DeltaManifest) -> bool:
    """Whether the backbone has batch-norm statistics."""
    return any(name.endswith(".running_mean") for name in manifest.backbone.tensors)


def _tell(
    console: Console, delta: Path, to: Path, what: str, manifest: DeltaManifest, norms: Mapping[str, Moments]
) -> None:
    """Print what was written.

    Args:
        console: where to print.
        delta: folder of the delta file that was adapted.
        to: folder of the new one.
        what: was done.
        manifest: of the old one.
        norms: moments beside the old one.
    """
    size = (to / TENSORS).stat().st_size
    sha256 = read_delta(to)[0].sha256[:12]
    console.print(
        f"wrote {shown_path(to)}: {size:,} bytes, SHA-256 {sha256}, from {shown_path(delta)} by {what} without labels",
        highlight=False,
        soft_wrap=True,
    )
    if _normalizes(manifest) and not norms:
        console.print(f"{shown_path(delta)}: {UNALIGNED}", highlight=False, soft_wrap=True)
