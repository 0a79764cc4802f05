"""Colors and style of the figures, in a light and a dark version with the background of the page.

Colors are Okabe and Ito's, safe for color-blind readers: blue is better, orange is worse, gray is neither.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colors of a figure, as hexadecimal RGB."""

    paper: str
    ink: str
    muted: str
    line: str
    better: str
    worse: str
    series: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff",
    ink="#1d2329",
    muted="#626c76",
    line="#dfe3e7",
    better="#0072b2",
    worse="#d55e00",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#a87900", "#56b4e9", "#626c76"),
)
DARK = Theme(
    paper="#171b20",
    ink="#e7eaed",
    muted="#9aa4ae",
    line="#2f363d",
    better="#56b4e9",
    worse="#f0803c",
    series=("#56b4e9", "#f0803c", "#2fc79b", "#e29cc4", "#e6c229", "#8fa8ff", "#9aa4ae"),
)


def png(
    make: Callable[[Theme], Figure | None], theme: Theme, families: Sequence[str] = ("DejaVu Sans",)
) -> bytes | None:
    """A figure as PNG.

    Args:
        make: draws the figure, or returns None where there is nothing to draw.
        theme: its colors.
        families: fonts, in the order in which a glyph is looked for.

    Returns:
        The PNG, or None.
    """
    with mpl.rc_context({**_style(theme), "font.family": list(families)}):
        figure = make(theme)
        if figure is None:
            return None
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def _style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "font.size": 9,
        "text.color": theme.ink,
        "text.parse_math": False,  # a class name may hold dollar signs
        "axes.labelcolor": theme.muted,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.edgecolor": theme.line,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": theme.line,
        "ytick.color": theme.line,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.ink,
        "grid.color": theme.line,
        "grid.linewidth": 0.7,
        "lines.linewidth": 1.6,
        "lines.markersize": 3.5,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
    }
