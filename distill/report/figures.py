"""Draws the figures of a run as PNG: accuracy of all models, curves, student against baseline by class."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from distill.report.fonts import fonts_for
from distill.report.items import Series
from distill.report.numbers import SPACE, percent, points, signed
from distill.report.outcome import Outcome, outcome
from distill.report.plots import heat_maps, lines_figure
from distill.report.scatter import scatter_figure
from distill.report.summary import RunSummary, finite
from distill.report.theme import DARK, LIGHT, Theme, png
from distill.report.where import bytes_figure

WIDTH = 5.2  # inches: narrow, so that the text is readable on a phone
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g}{SPACE}%")
MOST_BARS = 40
MOST_CONFUSED = 20
MOST_NAMED = 16  # curves of a panel that has a legend


@dataclass(frozen=True)
class ThemedFigure:
    """A figure as PNG bytes, for the light and the dark theme of the page."""

    light: bytes
    dark: bytes


def draw(summary: RunSummary) -> dict[str, ThemedFigure]:
    """File stem → figure, for each figure whose data the summary has."""
    light, dark = (draw_in(theme, summary) for theme in (LIGHT, DARK))
    return {name: ThemedFigure(light[name], dark[name]) for name in light}


def draw_in(theme: Theme, summary: RunSummary) -> dict[str, bytes]:
    """File stem → PNG in one theme, for each figure whose data the summary has.

    A class whose name no font of this machine can show has its index in the figures.
    """
    fonts = fonts_for(summary.classes)
    summary = summary.model_copy(update={"classes": fonts.labels(summary.classes)})
    makers: dict[str, Callable[[RunSummary, Theme], Figure | None]] = {
        "accuracy": accuracy,
        "curves": curves,
        "classes": classes,
        "confusion": confusion,
        "bytes": bytes_figure,
    }
    drawn = {name: png(partial(maker, summary), theme, fonts.families) for name, maker in makers.items()}
    for number, item in enumerate(summary.lines, 1):
        drawn[f"lines-{number}"] = png(partial(lines_figure, item), theme, fonts.families)
    for number, scatter in enumerate(summary.scatters, 1):
        drawn[f"scatter-{number}"] = png(partial(scatter_figure, scatter), theme, fonts.families)
    for number, matrices in enumerate(summary.heat_maps.values(), 1):
        drawn[f"matrices-{number}"] = png(partial(heat_maps, matrices), theme, fonts.families)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def accuracy(summary: RunSummary, theme: Theme) -> Figure | None:
    """Test accuracy of each model with its 95 % interval; dots, not bars, since the axis does not start at zero."""
    rows = [row for row in reversed(summary.rows) if finite(row.accuracy)]
    if not rows:
        return None
    images = sum(label >= 0 for label in summary.labels)
    figure, axes = _canvas(0.9 + 0.42 * len(rows), theme)
    for y, row in enumerate(rows):
        value = row.accuracy or 0.0
        color = theme.better if row.name == summary.student else theme.muted
        if (estimate := row.measures.get("accuracy")) is not None:
            axes.plot(
                (estimate.low, estimate.high), (y, y), color=color, linewidth=3, alpha=0.35, solid_capstyle="butt"
            )
        axes.plot(value, y, "o", color=color, markersize=8)
        axes.annotate(
            percent(value), (value, y), (0, 9), textcoords="offset points", ha="center", color=theme.ink, fontsize=9
        )
    axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(axis="x")
    measured = any(row.measures for row in rows)
    axes.set_xlabel(f"test accuracy, 95 % interval on {images} images" if measured else "test accuracy")
    return figure


def curves(summary: RunSummary, theme: Theme) -> Figure | None:
    """Over steps: loss terms of the student, and the accuracy of each model (agreement without labels)."""
    losses = {
        "total" if name == "loss" else name.removeprefix("loss/"): series
        for name, series in summary.curves.get(summary.student, {}).items()
        if "loss" in name
    }
    score = "accuracy" if any("accuracy" in name for log in summary.curves.values() for name in log) else "agreement"
    scores = {
        stage if _only_one(log, score) else f"{stage} · {name}": series
        for stage, log in summary.curves.items()
        for name, series in log.items()
        if score in name
    }
    splits = {name.removesuffix(f"/{score}") for log in summary.curves.values() for name in log if score in name}
    title = f"{' and '.join('validation' if split == 'val' else split for split in sorted(splits))} {score}"
    panels = [panel for panel in ((losses, "loss of the student"), (scores, title)) if panel[0]]
    if not panels:
        return None
    figure = Figure(figsize=(WIDTH, 2.8 * len(panels)), layout="constrained")
    for axes, (group, title) in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels):
        for number, (name, series) in enumerate(group.items()):
            _curve(axes, name, series, theme.series[number % len(theme.series)])
        if group is scores:
            axes.yaxis.set_major_formatter(PERCENT)
        elif _spans_decades(group):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("step")
        axes.grid(axis="y")
        axes.set_title(title)
        if len(group) <= MOST_NAMED:  # below the axes, so that it hides no curve
            columns = 4 if max(map(len, group)) <= 14 else 2
            axes.legend(fontsize=8, ncols=min(columns, len(group)), loc="upper center", bbox_to_anchor=(0.5, -0.22))
    return figure


def classes(summary: RunSummary, theme: Theme) -> Figure | None:
    """Accuracy of the student minus the baseline's by class, sorted; of many classes, the lowest and the highest."""
    compared = outcome(summary)
    if compared is None:
        return None
    change_K = compared.change_K
    order = [int(k) for k in np.argsort(change_K, kind="stable") if compared.present_K[k]]
    half = MOST_BARS // 2 if len(order) > MOST_BARS else len(order)
    left_out = order[half : len(order) - half]
    shown = order[:half] + order[half + len(left_out) :]
    rows = [y if y < half else y + 1 for y in range(len(shown))]  # one row for the classes that are not shown
    values = [float(change_K[k]) for k in shown]

    height = 0.2 if len(shown) > 20 else 0.28
    figure, axes = _canvas(1.0 + height * max(len(shown), 3), theme)
    axes.barh(rows, values, color=[theme.better if v > 0 else theme.worse for v in values], height=0.72)
    axes.axvline(0, color=theme.muted, linewidth=0.8)
    axes.set_yticks(rows, [_short(compared.classes[k]) for k in shown], fontsize=9 if height > 0.2 else 7.5)
    axes.set_ylim(-0.7, rows[-1] + 0.7)
    reach = max(0.02, *(abs(v) for v in values))
    axes.set_xlim(min(0.0, *values) - 0.16 * reach, max(0.0, *values) + 0.16 * reach)
    for y, value in zip(rows, values):
        side = math.copysign(4, value)
        axes.annotate(
            points(value), (value, y), (side, 0), textcoords="offset points", va="center", fontsize=7.5,
            ha="left" if value >= 0 else "right", color=theme.muted,
        )  # fmt: skip
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: points(value).removesuffix(".0")))
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(6))
    note = f"change in accuracy against the {summary.baseline}, percentage points"
    figure.supxlabel(note, fontsize=9, color=theme.muted)
    if left_out:
        least, most = (points(float(change_K[k])) for k in (left_out[0], left_out[-1]))
        note = f"{len(left_out)} more classes, {least} to {most}"
        axes.annotate(note, (0, half), (6, 0), textcoords="offset points", va="center", fontsize=7.5, color=theme.ink)
    return figure


def confusion(summary: RunSummary, theme: Theme) -> Figure | None:
    """Change in the confusion matrix from baseline to student, colored by whether it is better or worse."""
    compared = outcome(summary)
    if compared is None or len(compared.classes) < 2:
        return None
    shown = _most_changed(compared)
    change = compared.confusion_KK[np.ix_(shown, shown)]
    benefit = np.where(np.eye(len(shown), dtype=bool), change, -change)
    most = max(1, int(np.abs(change).max()))
    figure = Figure(figsize=(WIDTH, WIDTH * 0.85), layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("benefit", [theme.worse, theme.paper, theme.better])
    axes.imshow(benefit, cmap=colors, vmin=-most, vmax=most)
    text = 9 if len(shown) <= 12 else 6
    for i, j in zip(*np.nonzero(change)):
        strong = abs(change[i, j]) > 0.6 * most
        ink = theme.paper if strong else theme.ink
        axes.text(j, i, signed(int(change[i, j])), ha="center", va="center", fontsize=text, color=ink)
    names = [_short(compared.classes[k]) for k in shown]
    columns = names
    longest = max(map(len, names))
    if longest > 3 or longest * len(names) > 40:  # too long for column labels: number them
        columns = [str(number + 1) for number in range(len(names))]
        names = [f"{name}  {number}" for name, number in zip(names, columns)]
    axes.set_xticks(range(len(shown)), columns, fontsize=8)
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.set_xticks(np.arange(len(shown) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(shown) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.line, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(shown) < len(compared.classes):
        axes.set_title(f"the {len(shown)} classes that change most, of {len(compared.classes)}")
    return figure


def _most_changed(compared: Outcome) -> list[int]:
    """All classes if they are few, else those whose row and column change most, in class order."""
    if len(compared.classes) <= MOST_CONFUSED:
        return list(range(len(compared.classes)))
    change_KK = np.abs(compared.confusion_KK)
    total_K = change_KK.sum(axis=0) + change_KK.sum(axis=1)
    return sorted(int(k) for k in np.argsort(-total_K, kind="stable")[:MOST_CONFUSED])


def _curve(axes: Axes, name: str, series: Series, color: str) -> None:
    """Draw a line, with dots if it has few points; non-finite values are crosses on the lower edge."""
    x = np.asarray(series.steps)
    y = np.asarray(series.values, dtype=float)
    good = np.isfinite(y)
    label = name if good.any() else f"{name} (never finite)"
    axes.plot(x, np.where(good, y, np.nan), color=color, label=label, marker="o" if len(x) < 30 else None)
    if not good.all():
        bad = x[~good]
        axes.plot(bad, np.zeros(len(bad)), "x", color=color, transform=axes.get_xaxis_transform(), clip_on=False)


def _spans_decades(group: dict[str, Series]) -> bool:
    values = np.asarray([v for series in group.values() for v in series.values if math.isfinite(v)])
    return bool(len(values)) and values.min() > 0 and values.max() / values.min() > 50


def _only_one(log: dict[str, Series], word: str) -> bool:
    return sum(word in name for name in log) == 1


def _canvas(height: float, theme: Theme) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
