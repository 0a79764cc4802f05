"""Writes the report of a run: a self-contained HTML page, and its figures as PNG files."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from distill.files import write_atomic
from distill.report import numbers
from distill.report.figures import draw, draw_in
from distill.report.fonts import fonts_for
from distill.report.items import MEASURES, Headline, Row
from distill.report.outcome import Outcome, outcome
from distill.report.summary import RunSummary, finite
from distill.report.theme import LIGHT
from distill.report.where import blocks

logger = logging.getLogger(__name__)

FIGURES = ("accuracy", "curves", "classes", "confusion", "bytes")
NUMBERED = ("lines-*.png", "scatter-*.png", "matrices-*.png")
MOST_CONFUSIONS = 8


def write_report(folder: Path, summary: RunSummary) -> Path:
    """Write ``report.html`` and ``figures/*.png`` into the run folder; returns the path of the page.

    The page loads no script, font or picture from elsewhere. Each file is replaced atomically. A figure of an earlier
    report for which there is no data now is removed.
    """
    drawn = draw(summary)
    if unreadable := fonts_for(summary.classes).unreadable:
        logger.warning("%s", fonts_note(summary.classes, unreadable))
    figures = folder / "figures"
    for name, figure in drawn.items():
        write_atomic(figures / f"{name}.png", figure.light)
    for path in [*(figures / f"{name}.png" for name in FIGURES), *(p for each in NUMBERED for p in figures.glob(each))]:
        if path.stem not in drawn:
            path.unlink(missing_ok=True)
    pictures = {name: {"light": _embed(d.light), "dark": _embed(d.dark)} for name, d in drawn.items()}
    path = folder / "report.html"
    write_atomic(path, render(summary, pictures).encode())
    return path


def try_report(summary: RunSummary) -> None:
    """Make the page, and the figures in one theme, without writing them."""
    draw_in(LIGHT, summary)
    render(summary, {})


def render(summary: RunSummary, pictures: dict[str, dict[str, str]]) -> str:
    """The page as text. ``pictures`` are data URIs: figure name → theme → URI."""
    compared = outcome(summary)
    unreadable = fonts_for(summary.classes).unreadable
    return page_template().render(
        run=summary,
        tiles=tiles(summary),
        blocks=blocks(summary.sites),
        pictures=pictures,
        peaks=[row for row in summary.rows if finite(row.best_epoch)],
        outcome=compared,
        confusions=confusions(compared) if compared else [],
        numbered={k: name for k, name in enumerate(summary.classes) if name in unreadable},
        fonts_note=fonts_note(summary.classes, unreadable),
        measured=[row for row in summary.rows if row.measures],
        titles={name: title for name, title in MEASURES.items() if any(name in row.measures for row in summary.rows)},
        images=sum(label >= 0 for label in summary.labels),
        sections=[(title, list(group)) for title, group in groupby(summary.pictures, key=lambda item: item.title)],
        embed=_embed_file,
        zip=zip,
        verifications=[(of, list(group)) for of, group in groupby(summary.verification, key=lambda check: check.of)],
    )


@cache
def page_template() -> Any:
    """The Jinja template of the page, compiled once a process: a run renders it before and after training."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distill.report", ""),
        autoescape=True,  # titles, class names, paths and config come from the user
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("percent", "between", "points", "signed", "count", "size", "duration", "cell"):
        environment.filters[name] = getattr(numbers, name)
    return environment.get_template("report.html.j2")


def fonts_note(classes: Sequence[str], unreadable: frozenset[str]) -> str:
    """What the figures show for classes that no font can show, and what to do; empty if there are none."""
    example = next((name for name in classes if name in unreadable), None)
    if example is None:
        return ""
    return (
        f"no font of this machine has all glyphs of {len(unreadable)} class name(s), such as {example!r}: the figures "
        "show their numbers; install a font that has them (for example Noto Sans) and write the report again"
    )


def tiles(summary: RunSummary) -> list[tuple[str, str]]:
    """(number, its description): the most important numbers, as far as they are known."""
    compared = [(_headline(item), item.what) for item in summary.headlines]
    student = summary.row(summary.student)
    if student is None:
        return compared
    if _known(student):
        compared.append((numbers.percent(student.accuracy), "test accuracy of the student"))
    for row in (summary.row(summary.baseline), summary.row(summary.teacher)):
        if row is not None and _known(row) and _known(student):
            compared.append(
                (numbers.points((student.accuracy or 0) - (row.accuracy or 0)), f"points against the {row.name}")
            )
    if finite(student.agreement):
        compared.append((numbers.percent(student.agreement), "agreement with the teacher"))
    if student.bytes is not None:
        compared.append((numbers.size(student.bytes), "size of the student"))
    return compared


def _headline(item: Headline) -> str:
    return numbers.percent(item.value) if item.unit == "percent" else numbers.cell(item.value, item.unit)


def confusions(compared: Outcome) -> list[dict[str, Any]]:
    """The confusions whose count changes most, largest change first: true class, answer, count before and after."""
    change_KK = compared.confusion_KK.copy()
    np.fill_diagonal(change_KK, 0)
    order = np.argsort(-np.abs(change_KK), axis=None, kind="stable")[:MOST_CONFUSIONS]
    rows = []
    for true, answer in zip(*np.unravel_index(order, change_KK.shape)):
        if change_KK[true, answer]:
            of_class = compared.labels_N == true
            before = int((compared.baseline_N[of_class] == answer).sum())
            after = int((compared.student_N[of_class] == answer).sum())
            rows.append(
                {"true": compared.classes[true], "answer": compared.classes[answer], "before": before, "after": after}
            )
    return rows


def _known(row: Row) -> bool:
    return finite(row.accuracy)


def _embed_file(path: Path) -> str:
    """The data URI of a picture; empty if the file is missing, so that the page can name it."""
    return _embed(path.read_bytes()) if path.is_file() else ""


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
