"""A strip per operation: its results on one image, from the weakest draw to the strongest.

The range of an operation is measured: it draws for many samples, and the strip shows quantiles of the results, ordered
by how much they differ from the image. So every operation has a strip, users' own included, whatever its arguments
mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from augment.chain import resized, to_unit
from augment.draws import Draws
from augment.operation import Operation
from augment.preview.overlap import coordinates
from augment.preview.paper import (
    GAP,
    INK,
    LINE,
    MARGIN,
    MUTED,
    PAPER,
    as_rgb,
    fitted,
    font,
    line_height,
    lines,
    picture,
    to_bytes,
    wrapped,
)
from augment.recipe import Op

_LABEL = 210
_TITLE, _SMALL, _TINY = 14, 11, 10


@dataclass(frozen=True)
class Strip:
    """Results of an operation on one image, weakest first."""

    name: str
    arguments: str
    pictures: list[Tensor]
    """uint8 [3, h, w] each."""
    captions: list[list[str]]
    """Lines for every picture: how much it changed, and what was drawn for it."""
    unchanged: float
    """Share of the draws that left the image as it was."""


@torch.no_grad()
def strip_of(op: Op, image: Tensor, size: tuple[int, int], seed: int = 0, draws: int = 128, steps: int = 7) -> Strip:
    """The strip of one operation.

    The strength of a geometric operation is the mean distance that pixels moved, in percent of the image's diagonal.
    That of any other operation is the mean CIELAB distance (ΔE, 1976) between the image before and after.

    Args:
        op: the operation.
        image: [3, H, W], uint8 or floats in [0, 1].
        size: (height, width) of the network's input, to which the image is brought first.
        seed: of the draws.
        draws: samples to draw for; the strip runs from the weakest to the strongest of those that changed the image.
        steps: pictures at most; fewer if fewer different results were drawn.

    Returns:
        The strip, from the weakest to the strongest result.
    """
    operation = op.build(size)
    x = resized(to_unit(image[None]), size)
    source = Draws(seed, 0, "strip", torch.arange(draws)).op(op.type)
    out = operation(x.expand(draws, -1, -1, -1), source)
    if operation.geometric or out.shape[1:] != x.shape[1:]:
        strength, unit = 100 * _moved(op.geometry.build(size), source, draws, size), "moved {:.1f} %"
    else:
        strength, unit = _recolored(x, out), "ΔE {:.1f}"
    changed = (strength > 1e-3).nonzero().flatten()
    shown = _quantiles(strength, changed, steps)
    drawn = _drawn_values(operation, source, x.expand(draws, -1, -1, -1).shape, shown)
    return Strip(
        op.type.rpartition(":")[2],
        " · ".join(f"{key} {_plain(value)}" for key, value in op.arguments.items()),
        [to_bytes(out[row]) for row in shown],
        [[unit.format(strength[row]), *drawn.get(row, [])] for row in shown],
        1 - len(changed) / draws,
    )


def _quantiles(strength: Tensor, rows: Tensor, steps: int) -> list[int]:
    """Up to ``steps`` of the rows, weakest to strongest, evenly by rank; of equal results (a flip, say) only one."""
    if not len(rows):
        return []
    ordered = rows[strength[rows].argsort(stable=True)]
    rounded = (100 * strength[ordered] / strength[ordered[-1]]).round()
    different = ordered[torch.cat([rounded.new_ones(1), rounded.diff()]) != 0]
    ranks = torch.linspace(0, len(different) - 1, min(steps, len(different))).round().long()
    return different[ranks].tolist()


def _moved(operation: Operation, draws: Draws, batch: int, size: tuple[int, int]) -> Tensor:
    """[B] mean distance between where pixels are and where they came from, as a fraction of the diagonal."""
    grid = coordinates(batch, size)
    sources = operation(grid, draws)
    here = coordinates(batch, (sources.shape[-2], sources.shape[-1]))
    inside = sources[:, 2] > 0.99
    way = (sources[:, :2] - here[:, :2]).norm(dim=1) / 2**0.5
    return (way * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)


def _recolored(before: Tensor, after: Tensor) -> Tensor:
    """[B] mean CIELAB distance; of other than three channels that of :func:`as_rgb`."""
    from kornia.color import rgb_to_lab

    return (rgb_to_lab(as_rgb(after).clamp(0, 1)) - rgb_to_lab(as_rgb(before))).norm(dim=1).flatten(1).mean(1)


def _drawn_values(operation: Operation, draws: Draws, shape: torch.Size, rows: Sequence[int]) -> dict[int, list[str]]:
    """The drawn values for each of ``rows``, of the parameters that are one number per sample and differ among them."""
    sample = getattr(operation, "sample", None)
    params = sample(draws, shape) if callable(sample) else None
    if not isinstance(params, Mapping) or len(rows) < 2:
        return {}
    texts_of: dict[int, list[str]] = {row: [] for row in rows}
    for name, value in params.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() != shape[0]:
            continue
        numbers = value.flatten()[list(rows)].tolist()
        if name != "batch_prob" and len(set(numbers)) > 1:
            for row, number in zip(rows, numbers):
                texts_of[row].append(f"{name.removesuffix('_factor').replace('_', ' ')} {number:.3g}")
    return {row: texts[:4] for row, texts in texts_of.items()}


def strips_sheet(groups: Mapping[str, Sequence[Strip]], cell: int = 108) -> Image.Image:
    """The picture of several operations' strips.

    Args:
        groups: heading, such as "student's operations" → its strips in order.
        cell: longest side of a picture in pixels.
    """
    most = max((len(strip.pictures) for strips in groups.values() for strip in strips), default=0)
    left = MARGIN + _LABEL + 14
    width = left + max(most, 2) * (cell + GAP) - GAP + MARGIN
    blocks: list[tuple[int, str, Strip | None]] = []
    for heading, strips in groups.items():
        blocks.append((46, heading, None))
        blocks += [(max(_label_height(strip), _pictures_height(strip, cell)) + 18, "", strip) for strip in strips]
        if not strips:
            blocks.append((line_height(_SMALL) + 12, "none", None))
    sheet = Image.new("RGB", (width, MARGIN + sum(height for height, _, _ in blocks) + 8), PAPER)
    draw = ImageDraw.Draw(sheet)
    y = MARGIN
    for height, text, strip in blocks:
        if strip is None:
            small = text == "none"
            draw.text((MARGIN, y), text, font=font(_SMALL if small else 16), fill=MUTED if small else INK)
        else:
            draw.line((MARGIN, y - 9, width - MARGIN, y - 9), fill=LINE)
            _draw_strip(sheet, draw, strip, y, left, cell)
        y += height
    return sheet


def _notes(strip: Strip) -> list[str]:
    unchanged = f"{strip.unchanged:.0%} of draws change nothing" if strip.unchanged else ""
    return [line for text in (strip.arguments, unchanged) if text for line in wrapped(text, font(_SMALL), _LABEL)]


def _label_height(strip: Strip) -> int:
    return line_height(_TITLE) + len(_notes(strip)) * line_height(_SMALL)


def _pictures_height(strip: Strip, cell: int) -> int:
    return cell + 4 + max((len(caption) for caption in strip.captions), default=0) * line_height(_TINY)


def _draw_strip(sheet: Image.Image, draw: ImageDraw.ImageDraw, strip: Strip, y: int, left: int, cell: int) -> None:
    below = lines(draw, (MARGIN, y), [strip.name], _TITLE, INK)
    lines(draw, (MARGIN, below), _notes(strip), _SMALL, MUTED)
    for n, (image, caption) in enumerate(zip(strip.pictures, strip.captions)):
        x = left + n * (cell + GAP)
        sheet.paste(picture(fitted(image[None], cell)[0]), (x, y))
        lines(draw, (x, y + cell + 4), caption, _TINY, MUTED)


def _plain(value: object) -> str:
    if isinstance(value, Mapping):  # an operation inside a container
        inside = value.get("transforms", ())
        name = str(value["type"]).rpartition(":")[2]
        return name + (f" ({', '.join(map(_plain, inside))})" if inside else "")
    if isinstance(value, list | tuple) and any(isinstance(item, str | Mapping) for item in value):
        return ", ".join(map(_plain, value))
    return " … ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
