"""Figures of items that any stage can report: lines over the same points, and matrices as heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from distill.report.items import Line, Lines, Matrix
from distill.report.numbers import SPACE, size
from distill.report.theme import Theme

WIDTH = 5.2  # inches, as of the other figures
ACROSS = 3  # heat maps side by side
MOST_NUMBERED = 10  # rows of a heat map whose cells have numbers
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def lines_figure(item: Lines, theme: Theme) -> Figure | None:
    """Lines over common points. Dashed ones are controls; a number at the right end where there is room.

    Args:
        item: the lines; one without a value is left out.
        theme: colors.

    Returns:
        The figure, or None without any value.
    """
    shown = [line for line in item.lines if any(_known(value) for value in line.values)]
    if not shown:
        return None
    legend_rows = -(-len(shown) // 2)
    figure = Figure(figsize=(WIDTH, 2.6 + 0.17 * legend_rows), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(shown):
        _draw_line(axes, line, number if line.color is None else line.color, theme)
    _axis_of_points(axes, item.points, item.axis)
    if item.unit == "percent":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}{SPACE}%"))
    else:
        values = [value for line in shown for value in line.values if _known(value) and value]
        if values and max(values) > 20 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(round(value))))
    axes.grid(axis="y")
    figure.legend(fontsize=8, ncols=2, loc="outside lower center", handlelength=3.2)
    return figure


def heat_maps(matrices: Sequence[Matrix], theme: Theme) -> Figure | None:
    """One heat map for each matrix, with the same colors: from the paper's (0) to blue (1).

    Rows and columns are numbered from 1. Matrices with fewer than two rows of numbers are left out, unless they have
    one row. Cells have numbers, in percent, if there are few of them.

    Args:
        matrices: of equal shapes.
        theme: colors.

    Returns:
        The figure, or None without any matrix to draw.
    """
    shown = [matrix for matrix in matrices if sum(map(_any_known, matrix.values)) >= min(2, len(matrix.rows))]
    if not shown:
        return None
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    width = WIDTH / ACROSS
    figure = Figure(figsize=(max(width * across, 0.6 * WIDTH), (width + 0.12) * down + 0.25), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    colors = LinearSegmentedColormap.from_list("accuracy", [theme.paper, theme.better], bad=theme.paper)
    for number, (axes, matrix) in enumerate(zip(grid.flat, shown)):
        _heat_map(axes, matrix, colors, theme)
        if number % across:
            axes.set_yticklabels([])
        if number + across < len(shown):
            axes.set_xticklabels([])
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("test images of task", fontsize=8, color=theme.muted)
    figure.supylabel("after task", fontsize=8, color=theme.muted)
    return figure


@dataclass(frozen=True)
class Spread:
    """Range of final accuracies of one model: mean and maximum over tasks, over orders and over seeds; fractions."""

    name: str
    average: float
    maximum: float
    average_seeds: float
    maximum_seeds: float


def spread_figure(spreads: Sequence[Spread], theme: Theme) -> Figure | None:
    """For each model a line from the mean to the maximum over tasks, over orders (blue) and over seeds (gray).

    Args:
        spreads: of the models.
        theme: colors.

    Returns:
        The figure, or None without any model.
    """
    if not spreads:
        return None
    figure = Figure(figsize=(WIDTH, 1.0 + 0.34 * len(spreads)), layout="constrained")
    axes = figure.subplots()
    for y, spread in enumerate(reversed(spreads)):
        for at, low, high, color, label in (
            (y + 0.14, spread.average, spread.maximum, theme.better, "over orders"),
            (y - 0.14, spread.average_seeds, spread.maximum_seeds, theme.muted, "over seeds"),
        ):
            axes.plot((low, high), (at, at), color=color, linewidth=1.6, label=label if y == 0 else None)
            axes.plot(low, at, "o", color=color, markersize=6)
            axes.plot(high, at, "|", color=color, markersize=9)
    axes.set_yticks(range(len(spreads)), [_short(spread.name) for spread in reversed(spreads)], fontsize=8)
    axes.set_xlim(left=-0.005)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    axes.set_xlabel("range of a task's final accuracy, points: mean of the tasks (dot) and maximum (bar)")
    axes.grid(axis="x")
    figure.legend(fontsize=8, ncols=2, loc="outside lower center")
    return figure


def _heat_map(axes: Axes, matrix: Matrix, colors: LinearSegmentedColormap, theme: Theme) -> None:
    values = np.array([[math.nan if value is None else value for value in row] for row in matrix.values])
    axes.imshow(values, cmap=colors, vmin=0, vmax=1, aspect="equal")
    rows, columns = values.shape
    if max(rows, columns) <= MOST_NUMBERED:
        text = 8 if max(rows, columns) <= 5 else 6 if max(rows, columns) <= 7 else 4.5
        for i, j in zip(*np.nonzero(np.isfinite(values))):
            ink = theme.paper if values[i, j] > 0.55 else theme.ink
            axes.text(j, i, f"{100 * values[i, j]:.0f}", ha="center", va="center", fontsize=text, color=ink)
    for ticks, count in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        every = 1 if count <= MOST_NUMBERED else -(-count // 6)
        places = range(0, count, every)
        ticks(places, [str(place + 1) for place in places], fontsize=7)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.line, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_short(matrix.title), fontsize=8, fontweight="bold" if matrix.strong else "normal")


def _draw_line(axes: Axes, line: Line, number: int, theme: Theme) -> Line2D:
    color = theme.series[number % len(theme.series)]
    y = np.array([math.nan if value is None else value for value in line.values])
    (drawn,) = axes.plot(
        range(len(y)),
        y,
        color=color,
        label=line.name,
        linestyle=(0, (4, 2)) if line.dashed else "-",
        linewidth=2.4 if line.strong else 1.3,
        marker=MARKERS[number // len(theme.series) % len(MARKERS)] if len(y) < 30 else None,
        markersize=4,
        zorder=3 if line.strong else 2,
    )
    return drawn


def _axis_of_points(axes: Axes, points: Sequence[str], what: str) -> None:
    """Names of the points if they are few and short, else numbers from 1."""
    every = -(-len(points) // MOST_NUMBERED)
    places = range(0, len(points), every)
    named = len(points) * max(map(len, points), default=0) <= 60
    axes.set_xticks(places, [points[place] if named else str(place + 1) for place in places])
    axes.set_xlabel(what)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _any_known(values: Sequence[float | None]) -> bool:
    return any(map(_known, values))


def _short(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:35]}…"
