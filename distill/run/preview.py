"""Pictures of the views of each network, from an experiment's data and augmentation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from augment.draws import sample_key
from augment.dual import DualAugment
from augment.placement import to_device
from augment.policy import ViewSpec
from augment.preview import Strip, ViewOverlap, contact_sheet, strip_of, strips_sheet, view_overlap
from augment.recipe import Op
from augment.views import InputSpec, Views
from distill.data.base import UNLABELED
from distill.data.experiment_data import ExperimentData
from distill.data.reader import Batch
from distill.files import write_atomic


@dataclass(frozen=True)
class Preview:
    """PNGs of the contact sheet and of the strips of operations, and a line about the overlap of the views."""

    sheet: bytes
    operations: bytes
    shared: str
    """Overlap and color difference of the teacher's and the student's views; empty without a teacher."""

    def write(self, to: Path) -> list[Path]:
        """Write ``NAME.png`` and ``NAME-operations.png``; returns their paths."""
        paths = [to, to.with_stem(f"{to.stem}-operations")]
        for path, content in zip(paths, (self.sheet, self.operations)):
            write_atomic(path, content)
        return paths


@dataclass(frozen=True)
class ViewBatch:
    """A batch of an epoch and its views."""

    epoch: int
    batch: Batch
    views: Views
    augment: DualAugment

    @classmethod
    def of(cls, augment: DualAugment, batch: Batch, epoch: int, device: torch.device | str = "cpu") -> ViewBatch:
        """Make the views of a batch.

        Args:
            augment: the pipelines; it is moved to ``device``.
            batch: images of the loader, uint8 [B, 3, H, W].
            epoch: counted from 0.
            device: where the views are made.

        Returns:
            The batch with its views, which are on ``device``.
        """
        views = augment.to(device)(to_device(batch.pixels, device), batch.ids, epoch)
        return cls(epoch, batch, views, augment)


def draw_preview(data: ExperimentData, view_batch: ViewBatch, images: int, draws: int = 128) -> Preview:
    """Draw the first images of a batch, and a strip of every operation on the first of them.

    Args:
        data: gives the names of classes and samples.
        view_batch: the batch and its views.
        images: largest number of rows of the contact sheet.
        draws: samples that each operation draws for, to find its range.

    Returns:
        The two pictures and the line about the overlap of the views.
    """
    augment, batch = view_batch.augment, view_batch.batch
    count = min(images, len(batch.images))
    originals = batch.images[:count]
    shared = view_overlap(augment, originals, batch.ids[:count], view_batch.epoch) if augment.teachers else None
    titles, notes = _labels(data, view_batch, count, shared)
    overlap = str(shared) if shared else ""
    sheet = contact_sheet(
        originals,
        view_batch.views,
        augment.teachers,
        augment.student,
        titles if any(titles) else None,
        notes if any(notes) else None,
        [f"teacher and student: {overlap}"] if overlap else [],
    )
    return Preview(_png(sheet), _png(strips_sheet(_strips(view_batch, originals[0], draws))), overlap)


def _labels(
    data: ExperimentData, view_batch: ViewBatch, count: int, shared: ViewOverlap | None
) -> tuple[list[str], list[list[str]]]:
    """For each row: its class, and lines with its id, the overlap of its views, and its partner in a mix."""
    names = _names(data, view_batch.batch.ids[:count])
    titles = [data.classes[label] if label != UNLABELED else "" for label in view_batch.batch.labels[:count].tolist()]
    notes: list[list[str]] = []
    for row in range(count):
        notes.append([names[row]] if names[row] else [])
        if shared is not None:
            apart = shared.color[row]
            notes[row].append(f"overlap {shared.overlap[row]:.0%}" + ("" if apart.isnan() else f" · ΔE {apart:.1f}"))
    if (mix := view_batch.views.mix) is not None:
        partners = mix.partner[:count].cpu()
        others = zip(_names(data, view_batch.batch.ids[partners]), view_batch.batch.labels[partners].tolist())
        fractions = _mix_text(mix.student, mix.teacher[0] if mix.teacher else ())
        for row, (name, label) in enumerate(others):
            notes[row] += [fractions, f"the rest: {data.classes[label] if label != UNLABELED else name}"]
    return titles, notes


def _mix_text(student: Sequence[float], teacher: Sequence[float]) -> str:
    """``λ 0.62``; one for each network if they differ, since cutmix rounds its box to whole pixels of each size."""
    texts = [f"{share:.2f}" for share in (*student, *teacher)]
    if len(set(texts)) == 1:
        return f"λ {texts[0]}"
    return (
        "λ student "
        + "/".join(texts[: len(student)])
        + (", teacher " + "/".join(texts[len(student) :]) if teacher else "")
    )


def _names(data: ExperimentData, ids: Tensor) -> list[str]:
    """The names of the training samples with these int64 keys; empty for an unknown key."""
    wanted = set(ids.tolist())
    name_of = {key: name for name in data.subset("train").ids if (key := sample_key(name)) in wanted}
    return [name_of.get(key, "") for key in ids.tolist()]


def _strips(view_batch: ViewBatch, image: Tensor, draws: int = 128) -> dict[str, list[Strip]]:
    """Heading → strips, one for each operation: those of the student, then those that only other views have."""
    augment = view_batch.augment
    view_specs: list[tuple[str, ViewSpec, InputSpec]] = [
        ("student", view_spec, augment.student) for view_spec in augment.view_plan.student
    ]
    view_specs += [("teacher", view_spec, augment.teachers[0]) for view_spec in augment.view_plan.teacher]
    groups: dict[str, list[Strip]] = {}
    done: list[Op] = []
    for owner, view_spec, spec in view_specs:
        local = view_spec.key.startswith("local")
        name = f"{owner}'s operations" + (
            " for small crops" if local else "" if not groups else ", not in the views above"
        )
        for op in view_spec.recipe:
            if op not in done:
                done.append(op)
                groups.setdefault(name, []).append(
                    strip_of(op, image, view_spec.size or spec.size, augment.seed, draws)
                )
    return groups


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
