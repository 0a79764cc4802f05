"""Colors and fonts of the pictures, as in a run's report; and tensors as pictures."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from augment.chain import resized, to_unit

PAPER, INK, MUTED, LINE = "#ffffff", "#1d2329", "#626c76", "#dfe3e7"
GAP, GROUP_GAP, MARGIN = 6, 22, 24


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has the letters of most class names."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def wrapped(text: str, type_: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text at spaces into lines of at most ``width`` pixels; a longer word is shortened.

    Args:
        text: one line.
        type_: the font.
        width: in pixels.

    Returns:
        The lines.
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and type_.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, type_, width))
    return lines


def shortened(text: str, type_: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text that is wider than ``width`` pixels.

    Args:
        text: one line.
        type_: the font.
        width: in pixels.

    Returns:
        The text, or its beginning with an ellipsis.
    """
    if type_.getlength(text) <= width:
        return text
    while text and type_.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def lines(draw: ImageDraw.ImageDraw, at: tuple[int, int], texts: list[str], size: int, fill: str) -> int:
    """Write lines one below the other.

    Args:
        draw: where to.
        at: (x, y) of the first line in pixels.
        texts: the lines.
        size: of the font.
        fill: color.

    Returns:
        y below the last line.
    """
    x, y = at
    for text in texts:
        draw.text((x, y), text, font=font(size), fill=fill)
        y += line_height(size)
    return y


def line_height(size: int) -> int:
    return round(size * 1.4)


def as_rgb(images: Tensor) -> Tensor:
    """[…, C, H, W] → […, 3, H, W]: of three or more channels the first three, else the first one as gray."""
    channels = images.shape[-3]
    return images[..., :3, :, :] if channels >= 3 else images[..., :1, :, :].expand(*images.shape[:-3], 3, -1, -1)


def picture(image: Tensor) -> Image.Image:
    """From uint8 [C, H, W], see :func:`as_rgb`."""
    return Image.fromarray(as_rgb(image).permute(1, 2, 0).contiguous().numpy())


def to_bytes(images: Tensor) -> Tensor:
    """uint8 on the CPU, from floats in [0, 1]."""
    return images.detach().float().cpu().clamp(0, 1).mul(255).round().to(torch.uint8)


def fitted(images: Tensor, longest: int, whole: int | None = None) -> Tensor:
    """Scale images for a picture.

    Args:
        images: [B, 3, H, W], uint8 or floats in [0, 1].
        longest: pixels that ``whole`` becomes.
        whole: pixels of the images; None: their longest side.

    Returns:
        uint8 [B, 3, h, w].
    """
    scale = longest / (whole or max(images.shape[-2:]))
    size = tuple(max(1, round(side * scale)) for side in images.shape[-2:])
    return to_bytes(resized(to_unit(images), (size[0], size[1])))
