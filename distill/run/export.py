"""A trained student as files, and the proof that the files are the student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from augment.chain import eval_view
from augment.views import InputSpec
from distill.deltas.base import StructuralDelta
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.delta.io import read_delta, write_delta
from distill.export.manifest import Preprocessing, Result
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.verify import TOLERANCE, verify
from distill.models.network import create_network
from distill.models.reused_head import enlargement
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import Check
from distill.run.context import RunContext


def export_paths(folder: Path) -> dict[str, Path]:
    return {"delta": folder / "delta", "merged model": folder / "merged"}


def structural_types(student: StudentSettings) -> list[str]:
    """Types of the student's structural deltas. With any of them there is no merged folder: no weight can hold them."""
    settings = student.deltas
    return [s.type for s in settings if s.component is not None and issubclass(s.component, StructuralDelta)]


def export_student(
    context: RunContext, settings: StudentSettings, student: Student, folder: Path, results: Sequence[Result]
) -> dict[str, int]:
    """Write the delta file (unless every weight was trained) and the merged timm folder (unless a delta is structural).

    Args:
        context: the run's data: labels, canvas.
        settings: of the student.
        student: after its training.
        folder: where to write.
        results: measured numbers that the files carry.

    Returns:
        What was written → its bytes.
    """
    paths = export_paths(folder)
    about: dict[str, Any] = {
        "origin": student.network.origin,
        "labels": tuple(context.data.classes),
        "preprocessing": preprocessing(context, student),
        "results": list(results),
    }
    sizes = {}
    if not student.full:
        write_delta(paths["delta"], student.model, student.backbone, **about)
        sizes["delta"] = (paths["delta"] / "delta.safetensors").stat().st_size
        backbone = backbone_state(student.model, classifier_names(student.model))
        sizes["backbone"] = sum(t.numel() * t.element_size() for t in backbone.values())
    if not structural_types(settings):
        write_timm_folder(paths["merged model"], student.model, **about)
        sizes["merged model"] = (paths["merged model"] / "model.safetensors").stat().st_size
    if (larger := enlargement(student.model)) is not None:
        sizes["reused head, beyond its own"] = larger.bytes
    return sizes


def preprocessing(context: RunContext, student: Student) -> Preprocessing:
    """How an image becomes what the student was evaluated on: the canvas of the loader, then the network's size."""
    mode = {"crop": "center", "pad": "border", "squash": "squash"}[context.data.settings.fit]
    found = Preprocessing.of(student.model, student.input.size)
    return found.model_copy(update={"crop_pct": 1.0, "crop_mode": mode, "interpolation": "bicubic"})


def verify_export(
    context: RunContext, settings: StudentSettings, folder: Path, enough: int, student: Student | None = None
) -> list[Check]:
    """Prove the export on real images in a fresh process; ``student`` is compared too where there is one in memory.

    A student with structural deltas must be given: nothing is merged, so it is what the delta file is compared with.

    Args:
        context: the run's data.
        settings: of the student.
        folder: that :func:`export_student` wrote.
        enough: how many images to compare on.
        student: in memory.

    Returns:
        A check for each comparison; those that fail are not ``passed``.
    """
    paths = export_paths(folder)
    whole = settings.train == "full"
    merged = None if structural_types(settings) else paths["merged model"]
    network = create_network(settings.network)
    images = verification_images(context, network.input, enough)

    def backbone() -> nn.Module:
        torch.manual_seed(context.seed)  # a backbone of random weights is known by its seed
        return create_network(settings.network, read_delta(paths["delta"])[0].num_classes).model

    report = verify(
        merged,
        images,
        delta=None if whole else paths["delta"],
        make_backbone=None if whole else backbone,
        model=student.model if student is not None else None,
        enough=min(enough, len(images)),
    )
    hashes = {"merged weights": report.merged_sha256, "delta": report.delta_sha256}
    shown = ", ".join(f"{name} {sha256[:12]}" for name, sha256 in hashes.items() if sha256 is not None)
    checks = [Check(name="hashes", passed=True, detail=shown)]
    for comparison in report.comparisons:
        passed = comparison.relative_difference <= TOLERANCE and comparison.same_top1 == report.images
        detail = f"relative difference {comparison.relative_difference:.1e}, top-1 equal on {comparison.same_top1} of "
        checks.append(
            Check(
                name=f"{comparison.what} = {comparison.against}",
                passed=passed,
                detail=detail + f"{report.images} images",
            )
        )
    return checks


def verification_images(context: RunContext, spec: InputSpec, count: int) -> Tensor:
    """At least ``count`` real images as the student sees them, [N, 3, H, W]; all there are if the data has fewer."""
    views: list[Tensor] = []
    for split in ("test", "val", "train"):
        if context.data.has_split(split):  # type: ignore[arg-type]
            for batch in context.data.eval_loader(split, shared=False):  # type: ignore[arg-type]
                views.append(eval_view(batch.images, spec))
                if sum(len(view) for view in views) >= count:
                    return torch.cat(views)
    return torch.cat(views)
