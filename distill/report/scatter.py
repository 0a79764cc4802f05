"""Named points in a plane, such as exported formats by latency and size, with the front that no point beats."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from distill.report.items import Point, Scatter, Unit
from distill.report.numbers import SPACE, size
from distill.report.theme import Theme

WIDTH = 5.2  # inches, as of the other figures
CLOSE = 0.06  # of the figure's height: names of points that are closer are moved apart


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
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
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
    scale = Normalize(min(values), max(values)) if values and max(values) > min(values) else None
    for point in item.points:
        color = theme.muted if point.muted or point.value is None else theme.better
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

        bar = figure.colorbar(ScalarMappable(scale, colors), ax=axes, shrink=0.7, aspect=24)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.set_title(item.value, fontsize=8, loc="center")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.1f}{SPACE}%"))
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
    """Names on the right of their points, moved up where they would cover each other."""
    (_, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    used: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point.y, point.x)):
        x, y = point.x / right, point.y / top
        at = y
        while any(abs(x - other) < 0.45 and abs(at - height) < CLOSE for other, height in used):
            at += CLOSE / 4
        used.append((x, at))
        axes.annotate(
            point.name, (point.x, point.y), (point.x + 0.022 * right, at * top), va="center", fontsize=8,
            color=theme.muted if point.muted else theme.ink, fontweight="bold" if point.strong else "normal",
        )  # fmt: skip


def _tick(value: float, unit: Unit) -> str:
    return size(round(value)) if unit == "bytes" else f"{value:g}"
