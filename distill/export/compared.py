"""What a report shows about measured formats: a table, a scatter of latency and size, and the choice of a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill.export.pick import Choice, MeasuredFormat, choose, dominated, parse_rule
from distill.report.items import Cell, Column, FormatFigures, Item, Point, Scatter, Table, TableRow
from distill.report.numbers import SPACE, between

EAGER = "PyTorch, eager"
"""Name of the live model's row."""
TITLE, TIMES = "Export formats", "Times of the formats"
FAULT = "a larger difference from the live model than the format promises"
BUSY = 1.1
"""Times the number of threads: CPU seconds per second from which a format is marked."""


def chosen(measured: Sequence[FormatFigures], rule: str | None) -> Choice | None:
    """The format that a rule chooses; None without a rule.

    Args:
        measured: of the live model and of the formats.
        rule: see :mod:`distill.export.pick`.

    Returns:
        The choice, for which the live model itself does not stand.

    Raises:
        RuleError: the rule names what is not known or not measured.
    """
    if rule is None:
        return None
    live = next(each for each in measured if not each.type)
    candidates = [_candidate(each, live) for each in measured if each.type]
    return choose(parse_rule(rule), candidates, live.accuracy.value if live.accuracy is not None else None)


def format_items(measured: Sequence[FormatFigures], choice: Choice | None) -> Iterator[Item]:
    """The items of a report: the figures themselves, tables, and a scatter.

    Args:
        measured: of the live model and of the formats.
        choice: of a rule; None: nothing was chosen.

    Yields:
        The items.
    """
    yield from measured
    beaten = _dominated(measured)
    yield formats_table(measured, choice, beaten)
    yield times_table(measured, choice, beaten)
    first = measured[0].latencies[0]
    caption = (
        "Gray: another format is at least as good in latency, size and accuracy, and better in one. The dashed line "
        "joins the formats of which no other is both smaller and faster."
    )
    labeled = measured[0].accuracy is not None
    yield Scatter(
        title="Latency and size of the formats",
        points=tuple(
            Point(
                name=each.name,
                x=each.latencies[0].p50_ms,
                y=float(each.bytes),
                value=each.accuracy.value if each.accuracy is not None else each.agreement,
                muted=muted,
                strong=choice is not None and choice.name == each.name,
            )
            for each, muted in zip(measured, beaten)
        ),
        x=f"median latency of {_images(first.batch)}, ms",
        y="size",
        x_unit="milliseconds",
        y_unit="bytes",
        value="accuracy" if labeled else "agreement",
        caption=caption,
    )


def formats_table(measured: Sequence[FormatFigures], choice: Choice | None, beaten: Sequence[bool]) -> Table:
    """The table of all formats.

    Args:
        measured: of the live model and of the formats.
        choice: of a rule, which the caption repeats; None: nothing was chosen.
        beaten: which rows are gray.

    Returns:
        The table; where the terminal is narrow, it leaves out the last columns first, by their rank.
    """
    columns = [
        Column(heading="format"),
        Column(heading="accuracy, %", unit="percent"),
        Column(heading="95 %, interval", rank=2),
        Column(heading="same, top-1 %", unit="percent"),
        Column(heading="largest, difference", unit="error", rank=4),
        Column(heading="size", unit="bytes"),
        Column(heading="memory", unit="bytes", rank=3),
        Column(heading=f"ms, batch{SPACE}{measured[0].latencies[0].batch}", unit="milliseconds"),
        *(Column(heading=f"×{SPACE}eager, batch{SPACE}{of.batch}", unit="ratio") for of in measured[0].latencies),
    ]
    rows = [
        (
            each.accuracy.value if each.accuracy is not None else None,
            between(each.accuracy) if each.accuracy is not None else None,
            each.agreement,
            each.relative_difference,
            float(each.bytes),
            float(each.peak_bytes) if each.peak_bytes is not None else None,
            each.latencies[0].p50_ms,
            *(of.eager_ratio for of in each.latencies),
        )
        for each in measured
    ]
    caption = "" if choice is None else f"{choice} "
    return Table(
        title=TITLE,
        columns=tuple(columns),
        rows=_rows(measured, rows, choice, beaten),
        caption=caption + _explained(measured),
    )


def times_table(measured: Sequence[FormatFigures], choice: Choice | None, beaten: Sequence[bool]) -> Table:
    """The table of times.

    Args:
        measured: of the live model and of the formats.
        choice: of a rule; None: nothing was chosen.
        beaten: which rows are gray.

    Returns:
        The table.
    """
    columns = [Column(heading="format")]
    for n, batch in enumerate(of.batch for of in measured[0].latencies):
        of_batch = f"batch{SPACE}{batch}"
        columns += [
            Column(heading=f"p50 ms, {of_batch}", unit="milliseconds", rank=3 * n),
            Column(heading=f"p90 ms, {of_batch}", unit="milliseconds", rank=3 * n),
            Column(heading=f"images/s, {of_batch}", unit="count", rank=3 * n + 1),
        ]
    columns.append(Column(heading="load, s", unit="ratio", rank=2))
    rows = [
        (
            *(cell for of in each.latencies for cell in (of.p50_ms, of.p90_ms, of.images_per_second)),
            each.load_seconds,
        )
        for each in measured
    ]
    threads = "1 thread" if measured[0].threads == 1 else f"{measured[0].threads} threads"
    marks = "".join(f" {MARKS[1]} used {each.cores:.1f} cores ({each.name})." for each in measured if _marks(each)[1])
    fixed = sorted({each.fixed_batch for each in measured if each.fixed_batch is not None})
    if fixed:
        marks += f" {MARKS[2]} its batch is fixed ({', '.join(map(str, fixed))}): larger ones run in parts."
    return Table(
        title=TIMES,
        columns=tuple(columns),
        rows=_rows(measured, rows, choice, beaten),
        caption=f"Median and 90th percentile of calls, on {threads}; load: from the files to a session, its packages "
        f"imported before.{marks}",
    )


MARKS = "!†‡"


def _rows(
    measured: Sequence[FormatFigures], rows: Sequence[tuple[Cell, ...]], choice: Choice | None, beaten: Sequence[bool]
) -> tuple[TableRow, ...]:
    return tuple(
        TableRow(
            cells=(each.name, *cells),
            strong=choice is not None and choice.name == each.name,
            mark="".join(mark for mark, applies in zip(MARKS, _marks(each)) if applies),
            muted=muted,
        )
        for each, cells, muted in zip(measured, rows, beaten)
    )


def _explained(measured: Sequence[FormatFigures]) -> str:
    live = measured[0]
    text = (
        f"On {_images(live.images)} of {live.split}, each format in a process of its own. Same: as the live model. "
        "Memory: beyond interpreter and packages, at its peak while loading and running each batch once. × eager: the "
        "median over rounds of its time over that of PyTorch on the live model, deltas merged where possible. Gray: "
        "another format is at least as good in latency, size and accuracy."
    )
    if any(not each.passed for each in measured):
        text += f" {MARKS[0]} {FAULT}."
    return text


def _marks(each: FormatFigures) -> tuple[bool, bool, bool]:
    """Whether it breaks its promise, used more threads than it was told to, has a fixed batch."""
    return not each.passed, each.cores > BUSY * each.threads, each.fixed_batch is not None


def _dominated(measured: Sequence[FormatFigures]) -> list[bool]:
    return dominated(
        [
            (
                each.latencies[0].p50_ms,
                each.bytes,
                -(each.accuracy.value if each.accuracy is not None else each.agreement),
            )
            for each in measured
        ]
    )


def _candidate(each: FormatFigures, live: FormatFigures) -> MeasuredFormat:
    values: dict[str, float | None] = {
        "accuracy": each.accuracy.value if each.accuracy is not None else None,
        "agreement": each.agreement,
        "size": float(each.bytes),
        "memory": float(each.peak_bytes) if each.peak_bytes is not None else None,
        "load": each.load_seconds,
        "latency": each.latencies[0].p50_ms,
        "throughput": each.latencies[0].images_per_second,
    }
    relative: dict[str, float | None] = {
        "size": each.bytes / live.bytes,
        "load": each.load_seconds / live.load_seconds,
        "memory": each.peak_bytes / live.peak_bytes if each.peak_bytes is not None and live.peak_bytes else None,
        "latency": each.latencies[0].eager_ratio,
        "throughput": 1 / each.latencies[0].eager_ratio,
    }
    for of in each.latencies:
        values |= {f"latency@{of.batch}": of.p50_ms, f"throughput@{of.batch}": of.images_per_second}
        relative |= {f"latency@{of.batch}": of.eager_ratio, f"throughput@{of.batch}": 1 / of.eager_ratio}
    fault = "" if each.passed else FAULT
    return MeasuredFormat(each.name, values, relative, fault)


def _images(count: int) -> str:
    return f"{count:,}{SPACE}image{'s' * (count != 1)}"
