"""A picture of detections: what is there in one color, what was found in another."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw

from augment.preview.paper import GAP, INK, MARGIN, PAPER, font, line_height
from distill.detection.images import DetectionImages
from distill.detection.score import Detections
from distill.report.theme import LIGHT

WIDTH, COLUMNS = 420, 2
_TEXT = 12
SHOWN = 0.4
"""Detections with a lower score are not drawn."""


def detections_sheet(images: DetectionImages, detections: Detections, rows: Sequence[int]) -> bytes:
    """PNG of some images with their objects (green) and the detections (orange).

    Args:
        images: of a split.
        detections: of all of them.
        rows: which images.

    Returns:
        The PNG.
    """
    made = [_drawn(images, detections, row) for row in rows]
    line = line_height(_TEXT) + GAP
    lines = [made[start : start + COLUMNS] for start in range(0, len(made), COLUMNS)]
    height = MARGIN + line + sum(max(each.height for each in own) + GAP for own in lines) + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + COLUMNS * (WIDTH + GAP) - GAP, height), PAPER)
    title = f"green: objects that are there; orange: detections with a score of {SHOWN:g} or more"
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), title, font=font(_TEXT), fill=INK)
    top = MARGIN + line
    for own in lines:
        for column, each in enumerate(own):
            sheet.paste(each, (MARGIN + column * (WIDTH + GAP), top))
        top += max(each.height for each in own) + GAP
    buffer = BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _drawn(images: DetectionImages, detections: Detections, row: int) -> Image.Image:
    pixels, objects = images[row]
    array = pixels.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[..., :3] if array.shape[2] > 2 else array[..., 0]).convert("RGB")
    scale = WIDTH / image.width
    image = image.resize((WIDTH, max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for corners in objects.corners:
        draw.rectangle([float(x * scale) for x in corners], outline=LIGHT.series[2], width=1)
    chosen = (detections.images == row) & (detections.scores >= SHOWN)
    for corners, label, score in zip(
        detections.boxes[chosen].tolist(), detections.labels[chosen].tolist(), detections.scores[chosen].tolist()
    ):
        left, top, right, bottom = (x * scale for x in corners)
        draw.rectangle([left, top, right, bottom], outline=LIGHT.worse, width=2)
        text = f"{images.categories[label]} {score:.2f}"
        where = (left + 3, max(top - line_height(_TEXT), 0))
        draw.rectangle(draw.textbbox(where, text, font=font(_TEXT)), fill=PAPER)
        draw.text(where, text, font=font(_TEXT), fill=LIGHT.worse)
    return image
