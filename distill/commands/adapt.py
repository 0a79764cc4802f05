"""``distill adapt``: a new delta file from a delta file and unlabeled images of another domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from augment.console import shown_path
from distill.config import merge_trees, validate_tree
from distill.deltas.statistics import Statistics
from distill.experiments.source_free import SourceFreeExperiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import TENSORS, DeltaManifest, read_delta, save_delta, write_delta_files
from distill.export.delta.source_moments import read_source_moments, write_source_moments
from distill.run.context import open_context
from distill.run.from_delta import delta_folder, student_from_delta
from distill.run.runner import run_plan
from distill.stages.measure_domains import UNALIGNED
from distill.transfer.moments import aligned, batch_norm_moments
from distill.transfer.start import Moments
from distill.yaml_tree import apply_override

RUN = "run"
"""Folder of the run, in that of the new delta file."""
DEFAULTS: dict[str, Any] = {
    "kind": "source_free",
    "name": RUN,
    "data": {"batch_size": 32, "workers": 1},
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
KEPT = {"sha256", "packed", "schema_version", "made_by", "manifest_sha256"}
"""Fields of a manifest that a new file has of its own."""


def adapt(start: Path, images: Path, to: Path, statistics: bool, overrides: Sequence[str], console: Console) -> None:
    """Adapt a delta file to the images of a folder, and write a new one.

    Args:
        start: folder of a delta file, or of a run.
        images: folder of images of the target domain; subfolders may be classes, whose names are not read.
        to: folder of the new delta file; the run is in its subfolder ``run``.
        statistics: replace the batch-norm statistics alone, and train nothing.
        overrides: ``key.path=value`` of the config.
        console: where to print.

    Raises:
        ExportError: the delta file is damaged, or its backbone cannot be made.
        DataError: the images cannot be used.
    """
    delta = delta_folder(start)
    manifest, _ = read_delta(delta)
    size = manifest.preprocessing.input_size[1]
    data = {"source": {"type": "folder", "root": str(images)}, "size": size}
    data["channels"] = manifest.preprocessing.input_size[0]
    tree = merge_trees(DEFAULTS, {"start": str(delta), "output": str(to), "data": data})
    if norms := read_source_moments(delta):
        tree["teacher"] = {"ema": {"decay": 0.99, "normalizations": ["source", "target"]}}
    for override in overrides:
        apply_override(tree, override)
    experiment = validate_tree(tree, "distill adapt")
    assert isinstance(experiment, SourceFreeExperiment)
    if statistics:
        count = _replace_statistics(experiment, manifest, norms, to)
        write_source_moments(to, norms)
        _tell(console, delta, to, f"batch-norm statistics of {count:,} images", manifest, norms)
        return
    run = run_plan(experiment, experiment.plan(), experiment.model_dump(mode="json"), console=console)
    made, tensors = read_delta(run / "export" / "delta")
    with open_context(experiment) as context:
        count = len(context.data.as_target(manifest.labels).subset("train"))
    about = {name: value for name, value in made if name not in KEPT}
    write_delta_files(to, tensors, **about, made_by=_made_by(manifest, count))
    write_source_moments(to, norms)
    _tell(console, delta, to, f"{experiment.training.epochs} epochs on {count:,} images", manifest, norms)


def _replace_statistics(
    experiment: SourceFreeExperiment, manifest: DeltaManifest, norms: Mapping[str, Moments], to: Path
) -> int:
    """Write a delta file with the batch-norm statistics of the images.

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
        for site in student.sites:
            if site.name in moments and site.delta.settings.type == "statistics":
                own, layer = moments[site.name], student.model.get_submodule(site.name)
                if norms:
                    own = aligned(layer, norms[site.name], own)
                site.delta.fill(*own)  # type: ignore[union-attr, operator]
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
    return count


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
