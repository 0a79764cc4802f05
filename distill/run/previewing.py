"""The pictures of what each network sees, made from an experiment's own data and views."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from augment.draws import sample_key
from augment.policy import Look
from augment.preview import Shared, Strip, contact_sheet, strip_of, strips_sheet, what_views_share
from augment.recipe import Op
from augment.views import InputSpec
from distill.data.base import UNLABELLED
from distill.data.module import DataModule
from distill.files import write_atomic
from distill.run.replaying import Scene


@dataclass(frozen=True)
class Preview:
    """PNGs of the contact sheet and of the operations' strips, and a line about what the views share."""

    sheet: bytes
    operations: bytes
    shared: str
    """Empty without a teacher."""

    def write(self, to: Path) -> list[Path]:
        """Write ``NAME.png`` and ``NAME-operations.png``; returns their paths."""
        paths = [to, to.with_stem(f"{to.stem}-operations")]
        for path, content in zip(paths, (self.sheet, self.operations)):
            write_atomic(path, content)
        return paths


def draw_preview(data: DataModule, scene: Scene, images: int) -> Preview:
    """Draw the first ``images`` of a batch, and a strip of every operation on the first of them."""
    augment, batch = scene.augment, scene.batch
    count = min(images, len(batch.images))
    originals = batch.images[:count]
    shared = what_views_share(augment, originals, batch.ids[:count], scene.epoch) if augment.teachers else None
    titles, notes = _labels(data, scene, count, shared)
    said = str(shared) if shared else ""
    sheet = contact_sheet(
        originals,
        scene.views,
        augment.teachers,
        augment.student,
        titles if any(titles) else None,
        notes if any(notes) else None,
        [f"teacher and student: {said}"] if said else [],
    )
    return Preview(_png(sheet), _png(strips_sheet(_strips(scene, originals[0]))), said)


def _labels(data: DataModule, scene: Scene, count: int, shared: Shared | None) -> tuple[list[str], list[list[str]]]:
    """For every row: its class, and small lines with its id, what it was mixed with, and what its views share."""
    names = _names(data, scene.batch.ids[:count])
    titles = [data.classes[label] if label != UNLABELLED else "" for label in scene.batch.labels[:count].tolist()]
    notes: list[list[str]] = []
    for row in range(count):
        notes.append([names[row]] if names[row] else [])
        if shared is not None:
            apart = shared.colour[row]
            notes[row].append(f"overlap {shared.overlap[row]:.0%}" + ("" if apart.isnan() else f" · ΔE {apart:.1f}"))
    if (mix := scene.views.mix) is not None:
        partners = mix.partner[:count].cpu()
        others = zip(_names(data, scene.batch.ids[partners]), scene.batch.labels[partners].tolist())
        shares = _shares(mix.student, mix.teacher[0] if mix.teacher else ())
        for row, (name, label) in enumerate(others):
            notes[row] += [shares, f"the rest: {data.classes[label] if label != UNLABELLED else name}"]
    return titles, notes


def _shares(student: Sequence[float], teacher: Sequence[float]) -> str:
    """``λ 0.62``, or by network where rounding gave them other shares, as cutmix's whole pixels do."""
    texts = [f"{share:.2f}" for share in (*student, *teacher)]
    if len(set(texts)) == 1:
        return f"λ {texts[0]}"
    return (
        "λ student "
        + "/".join(texts[: len(student)])
        + (", teacher " + "/".join(texts[len(student) :]) if teacher else "")
    )


def _names(data: DataModule, ids: Tensor) -> list[str]:
    """The names that int64 keys stand for."""
    wanted = set(ids.tolist())
    found = {key: name for name in data.part("train").ids if (key := sample_key(name)) in wanted}
    return [found.get(key, "") for key in ids.tolist()]


def _strips(scene: Scene, image: Tensor) -> dict[str, list[Strip]]:
    """The strips of every operation, each once: the student's, then what other views have of their own."""
    augment = scene.augment
    looks: list[tuple[str, Look, InputSpec]] = [("student", look, augment.student) for look in augment.plan.student]
    looks += [("teacher", look, augment.teachers[0]) for look in augment.plan.teacher]
    groups: dict[str, list[Strip]] = {}
    done: list[Op] = []
    for owner, look, spec in looks:
        local = look.key.startswith("local")
        name = f"{owner}'s operations" + (" for small crops" if local else "" if not groups else ", its own")
        for op in look.recipe:
            if op not in done:
                done.append(op)
                groups.setdefault(name, []).append(strip_of(op, image, look.size or spec.size, augment.seed))
    return groups


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
