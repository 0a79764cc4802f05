"""Prints the end of a run on the terminal: the result table, sizes, times, and the paths of all files."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from augment.console import plain_console, shown_path
from distill.report.items import MEASURES, Check, Estimate, Matrix
from distill.report.items import Table as MeasuredTable
from distill.report.numbers import SPACE, between, cell, count, duration, percent, size
from distill.report.summary import RunSummary, finite
from distill.report.where import bytes_table

WIDE = 104  # columns from which the descriptions of models get a column in the table
SHORTEST, LONGEST = 18, 24  # width of the names in a measured table before they wrap, in a narrow and a wide terminal


def print_summary(summary: RunSummary, console: Console | None = None) -> None:
    """Print the summary; ``console`` None: standard output."""
    console = console or plain_console()
    console.print(closing(summary, console.width))


def closing(summary: RunSummary, width: int) -> RenderableType:
    """The summary as text and tables, for a terminal of ``width`` columns."""
    parts: list[Table] = []
    if summary.rows:
        parts.append(result_table(summary, width))
        if width < WIDE:
            parts.append(_pairs([(row.name, Text(row.what)) for row in summary.rows if row.what]))
    if summary.sites:
        parts.append(bytes_table(summary.sites))
    for measured in summary.tables:
        parts.append(measured_table(measured, width))
        if measured.caption:
            parts.append(_pairs([("", Text(measured.caption, style="dim"))]))
    parts += [_matrix_table(matrix) for matrix in summary.matrices if not matrix.section]
    parts.append(_pairs(_facts(summary)))
    parts.append(_pairs([(name, Text(shown_path(path))) for name, path in summary.paths.items()]))
    shown = [Padding(part, (0, 0, 1, 1)) for part in parts if part.row_count]
    return Group(Text(), Text(f" {summary.title}", style="bold"), Text(), *shown)


def result_table(summary: RunSummary, width: int) -> Table:
    """The models as rows; a narrow terminal has no column with their descriptions."""
    wide = width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model", overflow="fold")
    if wide:
        table.add_column("what it is", style="dim", overflow="fold")
    for heading in ("test\naccuracy", "agrees with\nteacher", "trained\nparameters", "size", "training"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        numbers = (percent(row.accuracy), percent(row.agreement), count(row.trained), size(row.bytes))
        cells = [Text(cell) for cell in (*numbers, duration(row.seconds))]
        style = "bold" if row.name == summary.student else ""
        table.add_row(Text(row.name), *([Text(row.what)] if wide else []), *cells, style=style)
    return table


def measured_table(measured: MeasuredTable, width: int) -> Table:
    """A table of numbers, with its caption below.

    Args:
        measured: the numbers.
        width: columns of the terminal; columns that do not fit are left out by their rank.

    Returns:
        The table.
    """
    texts = [[cell(value, column.unit) for value, column in zip(row.cells, measured.columns)] for row in measured.rows]
    names = [Text(row[0]).append(f" {of.mark}" if of.mark else "", "yellow") for row, of in zip(texts, measured.rows)]
    headings = [column.heading.replace(", ", "\n") for column in measured.columns]
    widths = [max(map(len, [*headings[n].split("\n"), *(row[n] for row in texts)])) for n in range(len(headings))]
    widths[0] = min(max(map(len, names), default=0), LONGEST if width >= WIDE else SHORTEST)
    shown = list(range(len(headings)))
    while sum(widths[n] + 2 for n in shown) > width - 1 and any(measured.columns[n].rank for n in shown):
        shown.remove(max(shown, key=lambda n: measured.columns[n].rank))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left", caption_justify="left")
    table.title, table.padding = Text(measured.title, style="bold"), (0, 1, 0, 0)
    for n in shown:
        text = measured.columns[n].unit == "text"
        table.add_column(headings[n], justify="left" if text else "right", no_wrap=n > 0, min_width=widths[n])
    for name, row, of in zip(names, texts, measured.rows):
        table.add_row(
            name, *(Text(row[n]) for n in shown[1:]), style="bold" if of.strong else "dim" if of.muted else ""
        )
    return table


def _matrix_table(matrix: Matrix) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title=matrix.title, title_justify="left")
    for heading in ("", *matrix.columns):
        table.add_column(heading, justify="right" if heading else "left")
    for name, values in zip(matrix.rows, matrix.values):
        table.add_row(name, *(percent(value) for value in values))
    return table


def _facts(summary: RunSummary) -> list[tuple[str, Text]]:
    facts = []
    if (student := summary.row(summary.student)) is not None and student.measures:
        facts.append((student.name, measures_text(student.measures)))
    if summary.sizes:
        facts.append(("size", _listed({name: size(value) for name, value in summary.sizes.items()})))
    if summary.seconds:
        facts.append(("time", _listed({name: duration(value) for name, value in summary.seconds_by_kind.items()})))
    for row in summary.rows:
        if finite(row.best_epoch):
            seen = f"best epoch {percent(row.best_epoch)} ({row.best_at}, chosen on test: too high)"
            facts.append(("epochs", Text(f"{row.name}: last epoch {percent(row.last_epoch)}, {seen}")))
    facts += _verified(summary.verification)
    facts += [("warning", Text(warning, style="yellow")) for warning in summary.warnings]
    return facts


def _verified(checks: tuple[Check, ...]) -> list[tuple[str, Text]]:
    """A line for everything that was verified: how many checks passed, or each that failed."""
    facts = []
    for of in dict.fromkeys(check.of for check in checks):
        own = [check for check in checks if check.of == of]
        failed = [check for check in own if not check.passed]
        facts += [(of, Text(f"failed: {check.name}. {check.detail}", style="bold red")) for check in failed]
        if not failed and of == "export":
            facts.append((of, Text(f"verified: {len(own)} of {len(own)} checks passed", style="green")))
        elif not failed:
            details = "; ".join(f"{check.name}: {check.detail}" if check.detail else check.name for check in own)
            facts.append((of, Text(f"verified: {details}", style="green")))
    return facts


def measures_table(measures: dict[str, Estimate]) -> Table:
    """One line for each measure: its value and its 95 % interval."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("measure", "value", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "measure" else "right", no_wrap=True)
    for name, estimate in measures.items():
        table.add_row(MEASURES[name], percent(estimate.value), between(estimate))
    return table


def measures_text(measures: dict[str, Estimate]) -> Text:
    """``accuracy 97.0 % (94.7 to 98.3) · macro F1 …``, each with its 95 % interval."""
    values = {MEASURES[name]: f"{percent(estimate.value)} ({between(estimate)})" for name, estimate in measures.items()}
    return _listed(values)


def _listed(values: dict[str, str]) -> Text:
    """``delta 246 kB · backbone 13.5 MB``; lines break only between entries."""
    entries = (
        Text.assemble((f"{name} ".replace(" ", SPACE), "dim"), value.replace(" ", SPACE))
        for name, value in values.items()
    )
    return Text(" · ", style="dim").join(entries)


def _pairs(rows: list[tuple[str, Text]]) -> Table:
    """A table of names, dim, and values."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), value)
    return table
