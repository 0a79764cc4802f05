"""Named points in a plane, such as exported formats by latency and size, with the front that no point beats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from distill.report.items import Point, Scatter, Unit
from distill.report.numbers import SPACE, size
from distill.report.theme import Theme

WIDTH = 5.2  # inches, as of the other figures
CHARACTER, LINE, GAP = 0.0145, 0.058, 0.014  # of the axes: a letter, the height of a name, half of a point
Box = tuple[float, float, float, float]
"""Left, right, bottom, top; of the axes."""


SPAN = 0.01
"""Least difference between the two ends of the color scale, as a fraction."""


def scatter_figure(item: Scatter, theme: Theme) -> Figure | None:
    """Points with their names; the color goes from orange (lowest value) to blue (highest), muted points are gray.

    Both axes start at zero. The line is that of the points that no other point beats on both axes.

    Args:
        item: the points.
        theme: colors.

    Returns:
        The figure, or None without any point.
    """
    if not item.points:
        return None
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    line = front([(point.x, point.y) for point in item.points])
    if len(line) > 1:
        axes.plot(
            [item.points[n].x for n in line], [item.points[n].y for n in line],
            color=theme.muted, linewidth=1.0, linestyle=(0, (4, 2)), zorder=1,
        )  # fmt: skip
    colored = [point for point in item.points if point.value is not None and not point.muted]
    values = [point.value for point in colored if point.value is not None]
    colors = LinearSegmentedColormap.from_list("value", [theme.worse, theme.better])
    # A difference of a few images would otherwise have the colors of good and bad, and ticks that read the same.
    scale = Normalize(min(*values, max(values) - SPAN), max(values)) if len(set(values)) > 1 else None
    for point in item.points:
        color: Any = theme.muted if point.muted or point.value is None else theme.better
        if scale is not None and not point.muted and point.value is not None:
            color = colors(scale(point.value))
        axes.scatter(
            point.x, point.y, s=70 if point.strong else 38, color=[color], zorder=3,
            edgecolors=theme.ink if point.strong else "none", linewidths=1.6 if point.strong else 0,
        )  # fmt: skip
    for of, unit in ((axes.xaxis, item.x_unit), (axes.yaxis, item.y_unit)):
        of.set_major_formatter(FuncFormatter(lambda value, _, unit=unit: _tick(value, unit)))
        of.set_minor_formatter(NullFormatter())
    axes.set_xlim(0, 1.3 * max(point.x for point in item.points) or 1)  # room for the names on the right
    axes.set_ylim(0, 1.15 * max(point.y for point in item.points) or 1)
    _names(axes, item.points, theme)
    axes.set_xlabel(item.x)
    axes.set_ylabel(item.y)
    axes.grid()
    if scale is not None:
        from matplotlib.cm import ScalarMappable

        bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, location="bottom", shrink=0.5, aspect=24)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label(item.value)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.1f}{SPACE}%"))
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats, with less of one and not more of the other, from left to right."""
    order = sorted(range(len(points)), key=lambda n: points[n])
    kept: list[int] = []
    lowest = float("inf")
    for n in order:
        if points[n][1] < lowest:
            kept.append(n)
            lowest = points[n][1]
    return kept


def _names(axes: Axes, points: Sequence[Point], theme: Theme) -> None:
    """Names beside their points, where they cover neither names nor points; a line leads to those further away."""
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    places = [(point.x / right, point.y / top) for point in points]
    taken = [(x - GAP, x + GAP, y - GAP, y + GAP) for x, y in places]
    for point, (x, y) in sorted(zip(points, places), key=lambda pair: (not pair[0].strong, pair[0].muted, pair[1][0])):
        width = CHARACTER * len(point.name) * (1.12 if point.strong else 1.0)
        boxes = [
            (start, start + width, y + step * LINE - LINE / 2, y + step * LINE + LINE / 2)
            for step in sorted(range(-8, 9), key=lambda step: (abs(step), -step))
            for start in (x + 1.5 * GAP, x - 1.5 * GAP - width)
        ]
        inside = [box for box in boxes if box[0] > 0 and box[1] < 1 and box[2] > 0 and box[3] < 1] or boxes
        box = next((box for box in inside if not any(_cover(box, other) for other in taken)), inside[0])
        taken.append(box)
        at, height = box[0], (box[2] + box[3]) / 2
        color = theme.muted if point.muted else theme.ink
        if abs(height - y) > LINE / 2:
            end = at if at > x else at + width
            axes.plot((point.x, end * right), (point.y, height * top), color=theme.muted, linewidth=0.5, zorder=1)
        axes.text(
            at * right, height * top, point.name, va="center", fontsize=8, color=color,
            fontweight="bold" if point.strong else "normal",
        )  # fmt: skip


def _cover(box: Box, other: Box) -> bool:
    return box[0] < other[1] and other[0] < box[1] and box[2] < other[3] and other[2] < box[3]


def _tick(value: float, unit: Unit) -> str:
    return size(round(value)) if unit == "bytes" else f"{value:g}"
