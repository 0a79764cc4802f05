"""Pictures of the views of each network, from an experiment's data and augmentation."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from augment.dual import DualAugment, chain_input
from augment.placement import to_device
from augment.policy import ViewSpec
from augment.preview import Strip, ViewOverlap, contact_sheet, strip_of, strips_sheet, view_overlap
from augment.recipe import Op
from augment.views import InputSpec, Views
from distill.data.base import UNLABELED
from distill.data.experiment_data import ExperimentData
from distill.data.positions import Positions
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


def first_of(images: int, parts: int) -> list[int]:
    """How many images to show of each of an update's batches: ``images`` in all, of no more batches than images."""
    shown = min(images, parts)
    return [images // shown + (part < images % shown) for part in range(shown)]


def update_views(
    data: ExperimentData,
    augment: DualAugment,
    epoch: int,
    numbers: Sequence[int],
    images: int,
    device: torch.device | str = "cpu",
) -> list[ViewBatch]:
    """The batches of an update that a picture of so many images shows, with their views.

    Args:
        data: of the experiment.
        augment: the pipelines; it is moved to ``device``.
        epoch: counted from 0.
        numbers: of the update's batches in the epoch; several with ``training.accumulate``.
        images: rows of the picture.
        device: where the views are made.

    Returns:
        Whole batches, since mixing depends on all their images; without mixing, of several batches only the images
        that are shown.
    """
    counts = first_of(images, len(numbers))
    whole = augment.mix is not None or len(numbers) == 1
    batches = [
        data.train_batch(epoch, number, images=None if whole else count) for number, count in zip(numbers, counts)
    ]
    return [ViewBatch.of(augment, batch, epoch, device) for batch in batches]


def draw_preview(
    data: ExperimentData, view_batches: Sequence[ViewBatch], images: int, parts: int = 1, draws: int = 128
) -> Preview:
    """Draw the first images of an update's batches, and a strip of every operation on the first of them.

    Args:
        data: gives the names of classes and samples.
        view_batches: batches of one update with their views, from :func:`update_views`.
        images: largest number of rows of the contact sheet.
        parts: number of batches in the update.
        draws: samples that each operation draws for, to find its range.

    Returns:
        The two pictures and the line about the overlap of the views.
    """
    augment, epoch = view_batches[0].augment, view_batches[0].epoch
    shown = [
        (view_batch, min(count, len(view_batch.batch.images)))
        for view_batch, count in zip(view_batches, first_of(images, len(view_batches)))
    ]
    originals = torch.cat([chain_input(view_batch.batch.images[:count]) for view_batch, count in shown])
    ids = torch.cat([view_batch.batch.ids[:count] for view_batch, count in shown])
    shared = view_overlap(augment, originals, ids, epoch) if augment.teachers else None
    titles: list[str] = []
    notes: list[list[str]] = []
    for number, (view_batch, count) in enumerate(shown):
        own_titles, own_notes = _labels(data, view_batch, count, shared, len(titles))
        titles += own_titles
        notes += [[*own, f"batch {number + 1} of {parts}"] for own in own_notes] if parts > 1 else own_notes
    overlap = str(shared) if shared else ""
    of_update = f"rows of {len(shown)} of the {parts} batches whose gradients one update averages"
    sheet = contact_sheet(
        originals,
        _joined([(view_batch.views, count) for view_batch, count in shown]),
        augment.teachers,
        augment.student,
        titles if any(titles) else None,
        notes if any(notes) else None,
        [f"teacher and student: {overlap}"] * bool(overlap) + [of_update] * (parts > 1),
    )
    return Preview(_png(sheet), _png(strips_sheet(_strips(view_batches[0], originals[0], draws))), overlap)


def _joined(parts: Sequence[tuple[Views, int]]) -> Views:
    """The first views of each batch, so many of it, as one batch; without what was mixed."""

    def join(views: Iterable[Tensor]) -> Tensor:
        return torch.cat([view[:count] for view, (_, count) in zip(views, parts, strict=True)])

    first = parts[0][0]
    return Views(
        tuple(
            tuple(join(views.teacher[n][v] for views, _ in parts) for v in range(len(first.teacher[n])))
            for n in range(len(first.teacher))
        ),
        tuple(join(views.student[v] for views, _ in parts) for v in range(len(first.student))),
        first.pairs,
    )


def _labels(
    data: ExperimentData, view_batch: ViewBatch, count: int, shared: ViewOverlap | None, first: int = 0
) -> tuple[list[str], list[list[str]]]:
    """For each row: its class, and lines with its id, the overlap of its views, and its partner in a mix.

    ``first`` is the row of the batch's first image in ``shared``.
    """
    names = _names(data, view_batch.batch.ids[:count])
    titles = [data.classes[label] if label != UNLABELED else "" for label in view_batch.batch.labels[:count].tolist()]
    notes: list[list[str]] = []
    for row in range(count):
        notes.append([names[row]] if names[row] else [])
        if shared is not None:
            apart = shared.color[first + row]
            part = f"overlap {shared.overlap[first + row]:.0%}"
            notes[row].append(part + ("" if apart.isnan() else f" · ΔE {apart:.1f}"))
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
    """The names of the training samples with these int64 ids, ``NAME#1`` for a repetition; empty if unknown."""
    subset = data.subset("train")
    samples, copies = Positions(subset.ids).locate(ids.cpu())
    located = zip(samples.tolist(), copies.tolist())
    return [subset.ids[sample] + f"#{copy}" * (copy > 0) if sample >= 0 else "" for sample, copy in located]


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
