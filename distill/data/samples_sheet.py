"""A picture of samples: one row for each class, some images of each split in it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from augment.preview.paper import GAP, GROUP_GAP, INK, MARGIN, MUTED, PAPER, font, line_height, shortened
from distill.data.base import UNLABELED, DataError, Split
from distill.data.depth import eight_bits
from distill.data.experiment_data import ExperimentData
from distill.data.split import Subset, by_hash
from distill.files import write_atomic

ROWS = 24
"""Largest number of classes that are shown."""
_CELL, _LABEL, _TITLE, _SMALL = 96, 170, 14, 11


def write_samples(data: ExperimentData, splits: Sequence[Split], to: Path, images: int) -> None:
    """Write the picture as PNG.

    Args:
        data: of the experiment.
        splits: those to show.
        to: the file.
        images: of each split in a row, chosen by the hash of their ids.
    """
    buffer = BytesIO()
    samples_sheet(data, splits, images).save(buffer, "PNG")
    to.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(to, buffer.getvalue())


def samples_sheet(data: ExperimentData, splits: Sequence[Split], images: int) -> Image.Image:
    """Draw the picture.

    Args:
        data: of the experiment.
        splits: those to show, side by side.
        images: of each split in a row.

    Returns:
        The picture. Of many classes, ``ROWS`` evenly spaced ones are shown. Images keep their aspect ratio.
        Of more than three channels the first three are shown, of two the first.
    """
    labels = [UNLABELED]
    if data.classes:
        rows = min(ROWS, len(data.classes))
        labels = sorted({round(row * (len(data.classes) - 1) / max(rows - 1, 1)) for row in range(rows)})
        if any((data.subset(split).labels == UNLABELED).any() for split in splits):
            labels.append(UNLABELED)
    group = images * (_CELL + GAP) - GAP + GROUP_GAP
    top = MARGIN + line_height(_TITLE) + GAP
    width = 2 * MARGIN + _LABEL + len(splits) * group - GROUP_GAP
    sheet = Image.new("RGB", (width, top + len(labels) * (_CELL + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, split in enumerate(splits):
        left = MARGIN + _LABEL + column * group
        subset = data.subset(split)
        draw.text((left, MARGIN), f"{split}: {len(subset):,}", font=font(_TITLE), fill=INK)
        for row, label in enumerate(labels):
            for number, index in enumerate(_chosen(subset, label, images)):
                cell = (left + number * (_CELL + GAP), top + row * (_CELL + GAP))
                _draw_sample(sheet, draw, subset, index, cell)
    for row, label in enumerate(labels):
        name = data.classes[label] if label != UNLABELED else "no label"
        y = top + row * (_CELL + GAP) + (_CELL - line_height(_TITLE)) // 2
        draw.text((MARGIN, y), shortened(name, font(_TITLE), _LABEL - GAP), font=font(_TITLE), fill=INK)
    return sheet


def _chosen(subset: Subset, label: int, images: int) -> list[int]:
    return by_hash(np.flatnonzero(subset.labels == label), subset.ids, salt="samples")[:images]


def _draw_sample(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, subset: Subset, index: int, cell: tuple[int, int]
) -> None:
    try:
        pixels = subset[index].image
    except DataError:
        draw.text(cell, "unreadable", font=font(_SMALL), fill=MUTED)
        return
    if pixels.dtype == np.uint16:
        pixels = eight_bits(pixels, 16)
    image = Image.fromarray(pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., 0])
    scale = _CELL / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    shown = image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    sheet.paste(shown, (cell[0] + (_CELL - size[0]) // 2, cell[1] + (_CELL - size[1]) // 2))
