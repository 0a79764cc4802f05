"""What each network sees, as a picture: one row per image, the original first, then every view."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from augment.chain import resized, to_unit
from augment.views import InputSpec, Views

_PAPER, _INK, _FAINT = (255, 255, 255), (32, 36, 44), (120, 126, 138)
_GAP, _GROUP_GAP, _MARGIN = 6, 22, 24


def denormalised(view: Tensor, spec: InputSpec) -> Tensor:
    """uint8 [B, 3, H, W] from a normalised view."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (spec.mean, spec.std))
    return (view.detach().float().cpu() * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)


def contact_sheet(
    originals: Tensor,
    views: Views,
    teachers: Sequence[InputSpec],
    student: InputSpec,
    titles: Sequence[str] | None = None,
    cell: int = 144,
) -> Image.Image:
    """The picture of a batch's views.

    Args:
        originals: [N, 3, H, W] uint8, the images before augmentation.
        views: of the same images, from :class:`augment.dual.DualAugment`.
        teachers, student: the specifications that the views were made for, to undo their normalisation.
        titles: a name for every row; default none.
        cell: longest side of a picture in pixels; the views keep their sizes relative to each other.
    """
    if len(views.teacher) != len(teachers):
        raise ValueError(f"views are for {len(views.teacher)} teachers, but {len(teachers)} specifications were given")
    if titles is not None and len(titles) != len(originals):
        raise ValueError(f"{len(originals)} images need as many titles, not {len(titles)}")
    groups: list[tuple[str, list[Tensor]]] = [("original", [originals.cpu()])]
    for n, (spec, seen) in enumerate(zip(teachers, views.teacher)):
        name = f"teacher {n + 1}" if len(teachers) > 1 else "teacher"
        groups.append((name, [denormalised(view, spec) for view in seen]))
    groups.append(("student", [denormalised(view, student) for view in views.student]))

    largest = max(max(view.shape[-2:]) for _, seen in groups[1:] for view in seen)
    columns = [(name, n, view) for name, seen in groups for n, view in enumerate(seen)]
    shown = []
    for name, _, view in columns:
        whole = max(view.shape[-2:]) if name == "original" else largest
        shown.append(_fitted(view, cell / whole))
    title_font, small_font = ImageFont.load_default(size=16), ImageFont.load_default(size=12)
    left = _MARGIN
    if titles is not None:
        left += 12 + round(max(title_font.getlength(title) for title in titles))
    lefts: list[int] = []
    for n, (_, index, _) in enumerate(columns):
        before = lefts[-1] + shown[n - 1].shape[-1] if n else left
        lefts.append(before + (0 if n == 0 else _GROUP_GAP if index == 0 else _GAP))
    captions = [_caption(view) for _, _, view in columns]
    row_height = max(view.shape[-2] for view in shown)
    top = _MARGIN + 46
    width = max(lefts[n] + max(shown[n].shape[-1], round(small_font.getlength(captions[n]))) for n in range(len(shown)))
    height = top + len(originals) * (row_height + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (width + _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, (name, index, _) in enumerate(columns):
        if index == 0:
            draw.text((lefts[n], _MARGIN), name, font=title_font, fill=_INK)
        draw.text((lefts[n], _MARGIN + 24), captions[n], font=small_font, fill=_FAINT)
        for row, picture in enumerate(shown[n]):
            y = top + row * (row_height + _GAP) + (row_height - picture.shape[-2]) // 2
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()), (lefts[n], y))
    for row, title in enumerate(titles or ()):
        middle = top + row * (row_height + _GAP) + row_height // 2
        draw.text((_MARGIN, middle), title, font=title_font, fill=_INK, anchor="lm")
    return sheet


def _caption(view: Tensor) -> str:
    height, width = view.shape[-2:]
    return f"{width} x {height}"


def _fitted(view: Tensor, scale: float) -> Tensor:
    height, width = (max(1, round(side * scale)) for side in view.shape[-2:])
    return resized(to_unit(view), (height, width)).clamp(0, 1).mul(255).round().to(torch.uint8)
