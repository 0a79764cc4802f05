"""The contact sheet: one row per image, the original first, then every view that a network sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from augment.preview.paper import (
    GAP,
    GROUP_GAP,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    fitted,
    font,
    line_height,
    lines,
    picture,
    shortened,
    to_bytes,
    wrapped,
)
from augment.views import InputSpec, Views

_TITLE, _SMALL = 15, 11
_LABEL = 190  # widest column of row titles, in pixels


def denormalized(view: Tensor, spec: InputSpec) -> Tensor:
    """uint8 [B, 3, H, W] from a normalized view."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return to_bytes(view.detach().float().cpu() * std + mean)


def contact_sheet(
    originals: Tensor,
    views: Views,
    teachers: Sequence[InputSpec],
    student: InputSpec,
    titles: Sequence[str] | None = None,
    notes: Sequence[Sequence[str]] | None = None,
    footer: Sequence[str] = (),
    cell: int = 144,
) -> Image.Image:
    """Picture of a batch: originals and views side by side.

    Args:
        originals: [N, 3, H, W] uint8, the images before augmentation.
        views: of the same images, from :class:`augment.dual.DualAugment`; of a larger batch, the first N are shown.
        teachers: inputs of the teacher's networks, to undo their normalization.
        student: input of the student, likewise.
        titles: a name for every row; default none.
        notes: small lines under every row's title, such as what it was mixed with.
        footer: lines under the pictures.
        cell: longest side of a picture in pixels; the views keep their sizes relative to each other.

    Returns:
        The picture, one row per image.
    """
    count = len(originals)
    if len(views.teacher) != len(teachers):
        raise ValueError(f"views are for {len(views.teacher)} teachers, but {len(teachers)} specifications were given")
    for what, given in (("titles", titles), ("notes", notes)):
        if given is not None and len(given) != count:
            raise ValueError(f"{count} images need as many {what}, not {len(given)}")
    groups: list[tuple[str, list[Tensor]]] = [("original", [originals.cpu()])]
    for n, (spec, seen) in enumerate(zip(teachers, views.teacher)):
        name = f"teacher {n + 1}" if len(teachers) > 1 else "teacher"
        groups.append((name, [denormalized(view[:count], spec) for view in seen]))
    groups.append(("student", [denormalized(view[:count], student) for view in views.student]))

    largest = max(max(view.shape[-2:]) for _, seen in groups[1:] for view in seen)
    columns = [(name, n, view) for name, seen in groups for n, view in enumerate(seen)]
    shown = [fitted(view, cell, None if name == "original" else largest) for name, _, view in columns]
    labels = _labels(titles, notes, count)
    left = MARGIN
    if any(title or small for title, small in labels):
        names = [font(_TITLE).getlength(title) for title, _ in labels]
        below = [font(_SMALL).getlength(line) for _, small in labels for line in small]
        left += 14 + round(max(names + below))
    lefts: list[int] = []
    for n, (_, index, _) in enumerate(columns):
        before = lefts[-1] + shown[n - 1].shape[-1] if n else left
        lefts.append(before + (0 if n == 0 else GROUP_GAP if index == 0 else GAP))
    captions = [f"{view.shape[-1]} × {view.shape[-2]}" for _, _, view in columns]
    widths = [max(p.shape[-1], round(font(_SMALL).getlength(text))) for p, text in zip(shown, captions)]
    width = max(x + w for x, w in zip(lefts, widths)) + MARGIN
    ending = [line for text in footer for line in wrapped(text, font(_SMALL), max(width - 2 * MARGIN, 2 * cell))]
    width = max(width, 2 * MARGIN + round(max((font(_SMALL).getlength(line) for line in ending), default=0)))
    row_height = max(view.shape[-2] for view in shown)
    top = MARGIN + 46
    bottom = top + count * (row_height + GAP) - GAP
    height = bottom + MARGIN + (len(ending) * line_height(_SMALL) + 14 if ending else 0)

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, (name, index, _) in enumerate(columns):
        if index == 0:
            draw.text((lefts[n], MARGIN), name, font=font(_TITLE), fill=INK)
        draw.text((lefts[n], MARGIN + 24), captions[n], font=font(_SMALL), fill=MUTED)
        for row, view in enumerate(shown[n]):
            y = top + row * (row_height + GAP) + (row_height - view.shape[-2]) // 2
            sheet.paste(picture(view), (lefts[n], y))
    for row, (title, small) in enumerate(labels):
        block = line_height(_TITLE) * bool(title) + line_height(_SMALL) * len(small)
        y = top + row * (row_height + GAP) + (row_height - block) // 2
        y = lines(draw, (MARGIN, y), [title] if title else [], _TITLE, INK)
        lines(draw, (MARGIN, y), small, _SMALL, MUTED)
    lines(draw, (MARGIN, bottom + 14), ending, _SMALL, MUTED)
    return sheet


def _labels(
    titles: Sequence[str] | None, notes: Sequence[Sequence[str]] | None, count: int
) -> list[tuple[str, list[str]]]:
    """The labels left of each row: title and notes, cut to the column's width."""
    return [
        (
            shortened(titles[row], font(_TITLE), _LABEL) if titles else "",
            [shortened(note, font(_SMALL), _LABEL) for note in notes[row]] if notes else [],
        )
        for row in range(count)
    ]
