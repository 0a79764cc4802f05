"""A picture of test images with the maps of where they differ from normal ones."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from augment.preview.paper import GAP, INK, MARGIN, MUTED, PAPER, font, line_height, shortened

SIDE, COLUMNS, _TEXT = 150, 6, 11


def heat_sheet(images: Sequence[np.ndarray], heat: Tensor, titles: Sequence[tuple[str, str]], limit: float) -> bytes:
    """PNG with each image above its map.

    Args:
        images: uint8 [H, W, 3], as the network saw them.
        heat: [N, h, w] maps; all share one scale, from their smallest value to their largest.
        titles: two lines of text above each image.
        limit: of the scores, for the first line.

    Returns:
        The PNG.
    """
    low, high = float(heat.min()), float(heat.max())
    line = line_height(_TEXT)
    cell = 2 * line + 2 * SIDE + 3 * GAP
    rows = -(-len(images) // COLUMNS)
    size = 2 * MARGIN + COLUMNS * (SIDE + GAP) - GAP, 2 * MARGIN + line + GAP + rows * cell
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    text = f"scores above {limit:.3g} are anomalous; red: far from every normal patch"
    draw.text((MARGIN, MARGIN), text, font=font(_TEXT), fill=INK)
    for number, (pixels, own, title) in enumerate(zip(images, heat, titles)):
        left = MARGIN + number % COLUMNS * (SIDE + GAP)
        top = MARGIN + line + GAP + number // COLUMNS * cell
        for part, (words, color) in enumerate(zip(title, (INK, MUTED))):
            shown = shortened(words, font(_TEXT), SIDE)
            draw.text((left, top + part * line), shown, font=font(_TEXT), fill=color)
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        sheet.paste(image, (left, top + 2 * line))
        scaled = ((own - low) / max(high - low, 1e-12)).clamp(0, 1)
        sheet.paste(_overlay(image, scaled), (left, top + 2 * line + SIDE + GAP))
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """The image in gray with red where the map, in [0, 1], is large."""
    side = torch.nn.functional.interpolate(heat[None, None], (SIDE, SIDE), mode="bilinear")[0, 0].numpy()[..., None]
    gray = np.asarray(image.convert("L"), dtype=np.float32)[..., None].repeat(3, 2)
    red = np.array([214.0, 39.0, 40.0], dtype=np.float32)
    return Image.fromarray(np.clip((1 - 0.75 * side) * gray + 0.75 * side * red, 0, 255).astype(np.uint8))
