"""Figures whose pixels no test looks at: they are made, but neither laid out nor rendered, which takes longest."""

import io
from typing import Any, BinaryIO

import pytest
from PIL import Image


class BlankCanvas:
    """Stands for ``FigureCanvasAgg`` in :func:`distill.report.theme.png`."""

    def __init__(self, figure: Any):
        self.figure = self

    def savefig(self, file: BinaryIO, **options: Any) -> None:
        Image.new("RGB", (2, 2)).save(file, options["format"])


def blank_figures(patch: pytest.MonkeyPatch) -> None:
    """Every figure of a report is a PNG of 2 x 2 pixels."""
    patch.setattr("distill.report.theme.FigureCanvasAgg", BlankCanvas)


def blank_previews(patch: pytest.MonkeyPatch) -> None:
    """So is every picture of views in a run."""
    from distill.run.preview import Preview

    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    drawn = Preview(picture.getvalue(), picture.getvalue(), "")
    patch.setattr("distill.stages.preview.draw_preview", lambda *_, **__: drawn)
