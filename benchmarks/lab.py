"""Shared by the benchmarks of whole runs: options, the file of results, figures with their bars, the page of results.

Such a benchmark has parts, generators of figures, by their names. A result that a part needs is measured once and kept
as a line of ``results.jsonl``, so a stopped benchmark continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import mean
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from accuracy import Notebook
from measure import Row, save
from rich import box
from rich.console import Console
from rich.table import Table

from distill.experiments.base import Experiment
from distill.files import write_atomic
from distill.report.summary import Machine
from distill.run.folder import RECORD
from distill.run.runner import run_plan
from distill.training.signals import Interrupted, StopSignal

Bars = Mapping[str, tuple[str, float]]
"""Figure → sign and limit: what it must be. All others are shown without a verdict."""
NOTES = "Notes"
"""Heading of the last section of a page of results, which is written by hand."""


class NotMeasuredError(Exception):
    """Nothing may be measured, and the file of results lacks this."""


@dataclass(frozen=True)
class Figure:
    """A measured figure: its mean, smallest and largest value over seeds, orders or rounds.

    Args:
        row: name, mean, unit, smallest, largest; all NaN if it is not measured.
        detail: over what, and of which sizes.
        limit: sign and number that it must reach; None: none.
    """

    row: Row
    detail: str
    limit: tuple[str, float] | None = None

    @property
    def is_measured(self) -> bool:
        return not isnan(self.row.value)

    @property
    def bar(self) -> str:
        """The bar, and whether it is reached if the figure is measured; empty without one."""
        if self.limit is None:
            return ""
        sign, limit = self.limit
        if not self.is_measured:
            return f"{sign} {limit:g}"
        value = self.row.value
        reached = value == limit if sign == "=" else value >= limit if sign == "≥" else value <= limit
        return f"{sign} {limit:g} {'reached' if reached else 'missed'}"


def figure_with(bars: Bars) -> Callable[[str, Sequence[float], str, str], Figure]:
    """``figure(name, values, unit, detail)`` with these bars; of no values, a figure that is not measured."""

    def figure(name: str, values: Sequence[float], unit: str, detail: str) -> Figure:
        if not values:
            return Figure(Row(name, nan, unit, nan, nan), detail, bars.get(name))
        return Figure(Row(name, mean(values), unit, min(values), max(values)), detail, bars.get(name))

    return figure


@dataclass
class Lab:
    """What every part gets: the options, the results so far, and a signal that asks to stop."""

    given: argparse.Namespace
    book: Notebook
    stop: StopSignal
    console: Console

    def once(self, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result with this key: from the file of results, or measured now and written there.

        Args:
            key: everything that the result depends on.
            work: gives the result.

        Returns:
            The result.

        Raises:
            NotMeasuredError: it is not in the file, and ``--list`` is given.
        """
        for line in self.book.with_key("key"):
            if line["key"] == key:
                return line
        if self.given.list:
            raise NotMeasuredError
        self.stop.raise_if_received()
        line = {"key": key, **work()}
        self.book.add(line)
        return line


Parts = Mapping[str, Callable[[Lab], Iterator[Figure]]]
"""Name of a part → its figures."""


def options(about: str | None, parts: Parts, out: str) -> argparse.ArgumentParser:
    """The options that these benchmarks share.

    Args:
        about: docstring of the benchmark.
        parts: of the benchmark.
        out: default of ``--out``.

    Returns:
        The parser, to which a benchmark adds its own options.
    """
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", help=f"comma-separated, of {', '.join(parts)}; default: all")
    made.add_argument("--quick", action="store_true", help="one seed, short fits")
    made.add_argument("--data", type=Path, default=Path("data"), help="folder of all data sets")
    made.add_argument("--seeds", help="comma-separated; default: 0,1,2")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the configs")
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--json", type=Path, help="write the figures to this file; its other ones are kept")
    made.add_argument(
        "--markdown",
        type=Path,
        help="write the page of results to this file; its sections of other parts and its notes are kept",
    )
    made.add_argument("--list", action="store_true", help="measure nothing, show the results so far")
    return made


def seeds(lab: Lab, default: Sequence[int] = (0, 1, 2)) -> list[int]:
    """The seeds that are asked for."""
    if lab.given.seeds:
        return [int(seed) for seed in lab.given.seeds.split(",")]
    return list(default[:1] if lab.given.quick else default)


def finished_run(settings: Experiment, console: Console | None = None) -> Path:
    """The folder of a run, which is made now, or continued, unless it is finished.

    Args:
        settings: the experiment's config.
        console: where the run prints; None: standard output.

    Returns:
        The run folder.
    """
    folder = settings.output / settings.name
    record = folder / RECORD
    status = json.loads(record.read_text())["status"] if record.is_file() else None
    if status != "finished":
        values = settings.model_dump(mode="json")
        run_plan(settings, settings.plan(), values, resume=folder if status else False, console=console)
    return folder


def measure_parts(given: argparse.Namespace, parts: Parts, title: str, about: str) -> None:
    """Measure what is asked for, print its tables, and write the file of figures and the page.

    Args:
        given: the options.
        parts: of the benchmark.
        title: of the page.
        about: first paragraph of the page.
    """
    names = given.only.split(",") if given.only else list(parts)
    for name in names:
        if name not in parts:
            raise SystemExit(f"there is no part {name!r}, only {', '.join(parts)}")
    given.out = given.out.resolve()
    logging.getLogger("distill").setLevel(logging.ERROR)
    console = Console()
    console.width = max(console.width, 120)  # of a file, too
    measured: dict[str, list[Figure]] = {}
    with StopSignal() as stop:
        lab = Lab(given, Notebook(given.out, {}), stop, console)
        for name in names:
            try:
                measured[name] = list(parts[name](lab))
            except NotMeasuredError:
                measured[name] = []
                console.print(f"{name}: not measured", highlight=False)
                continue
            except Interrupted as error:
                raise SystemExit(f"{error}; the same command continues") from None
            show(console, name, measured[name])
    if given.json:
        save_rows(given.json, [each.row for part in measured.values() for each in part if each.is_measured])
    if given.markdown:
        text = page(title, about, parts, measured, given.markdown)
        write_atomic(given.markdown, text.encode())


def save_rows(path: Path, rows: list[Row]) -> None:
    """Write rows to a file; its rows of other names are kept."""
    names = {row.name for row in rows}
    before = [Row(**each) for each in json.loads(path.read_text())] if path.is_file() else []
    save(path, [*(row for row in before if row.name not in names), *rows])


def show(console: Console, title: str, rows: list[Figure]) -> None:
    """Print the figures of a part."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("figure", no_wrap=True)
    for heading in ("mean", "smallest … largest", "unit", "bar"):
        table.add_column(heading, justify="left" if heading in ("unit", "bar") else "right", no_wrap=True)
    for each in rows:
        color = "red" if each.bar.endswith("missed") else "green"
        bar = f"[{color}]{each.bar}[/]" if each.bar and each.is_measured else each.bar
        table.add_row(each.row.name, number(each.row.value), spread(each.row), each.row.unit, bar)
    console.print(table)


def number(value: float) -> str:
    return "not measured" if isnan(value) else f"{value:.4g}"


def spread(row: Row) -> str:
    return "" if row.low == row.high or isnan(row.value) else f"{number(row.low)} … {number(row.high)}"


def sections_of(path: Path) -> dict[str, str]:
    """Heading → text of the sections of an existing page; empty without one."""
    text = path.read_text() if path.is_file() else ""
    sections = (section.partition("\n") for section in f"\n{text}".split("\n## ")[1:])
    return {heading: body.strip() for heading, _, body in sections}


def page(title: str, about: str, parts: Iterable[str], measured: Mapping[str, Sequence[Figure]], path: Path) -> str:
    """The page of results: a section for each part, with what it was measured on.

    Args:
        title: of the page.
        about: first paragraph.
        parts: names of all parts, in their order.
        measured: part → its figures; none if it was not measured.
        path: of an existing page, whose sections of other parts and notes are kept.

    Returns:
        Markdown.
    """
    before = sections_of(path)
    lines = [f"# {title}", "", about]
    for name in parts:
        if name in measured:
            lines += ["", f"## {name}", "", section(measured[name])]
        elif name in before:
            lines += ["", f"## {name}", "", before[name]]
    if NOTES in before:
        lines += ["", f"## {NOTES}", "", before[NOTES]]
    return "\n".join(lines) + "\n"


def section(rows: Sequence[Figure]) -> str:
    """The text of a part."""
    if not rows:
        return "Not measured."
    lines = ["| figure | mean | smallest … largest | unit | bar |", "|---|---:|---:|---|---|"]
    lines += [
        f"| `{each.row.name}` | {number(each.row.value)} | {spread(each.row)} | {each.row.unit} | {each.bar} |"
        for each in rows
    ]
    lines.append("")
    for detail in dict.fromkeys(each.detail for each in rows if each.detail):
        of = [f"`{each.row.name}`" for each in rows if each.detail == detail]
        lines.append(f"- {', '.join(of[:2])}{' …' * (len(of) > 2)}: {detail}")
    where = Machine.here()
    machine = f"{where.gpu or where.cpu}, {where.threads} thread(s)"
    return "\n".join([*lines, f"- machine: {machine}, Python {where.python}, torch {where.torch}, timm {where.timm}"])
