"""What a report shows about measured formats: a table, a scatter of latency and size, and the choice of a rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill.export.pick import Choice, MeasuredFormat, choose, dominated, parse_rule
from distill.report.items import Column, FormatFigures, Item, Latency, Point, Scatter, Table, TableRow
from distill.report.numbers import SPACE

EAGER = "PyTorch, eager"
"""Name of the live model's row."""
TITLE = "Export formats"
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
    """The items of a report: the figures themselves, a table, and a scatter.

    Args:
        measured: of the live model and of the formats.
        choice: of a rule; None: nothing was chosen.

    Yields:
        The items.
    """
    yield from measured
    beaten = _dominated(measured)
    yield formats_table(measured, choice, beaten)
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
    first, *others = (each.batch for each in measured[0].latencies)
    columns = [
        Column(heading="format"),
        Column(heading="accuracy, %", unit="percent"),
        Column(heading="95 %, interval", rank=4),
        Column(heading="same, top-1 %", unit="percent", rank=1),
        Column(heading="largest, difference", unit="error", rank=5),
        Column(heading="size", unit="bytes"),
        *_latency_columns(first, 0),
        *(column for batch in others for column in _latency_columns(batch, 2)),
        Column(heading="memory", unit="bytes", rank=3),
        Column(heading="load, s", unit="ratio", rank=6),
    ]
    rows = [
        TableRow(
            cells=(
                each.name,
                each.accuracy.value if each.accuracy is not None else None,
                _interval(each),
                each.agreement,
                each.relative_difference,
                float(each.bytes),
                *(cell for of in each.latencies for cell in _latency_cells(of)),
                float(each.peak_bytes) if each.peak_bytes is not None else None,
                each.load_seconds,
            ),
            strong=choice is not None and choice.name == each.name,
            mark="".join(mark for mark, applies in zip("!†‡", _marks(each)) if applies),
            muted=muted,
        )
        for each, muted in zip(measured, beaten)
    ]
    return Table(title=TITLE, columns=tuple(columns), rows=tuple(rows), caption=_caption(measured, choice))


def _latency_columns(batch: int, rank: int) -> tuple[Column, ...]:
    of = f"batch {batch}"
    return (
        Column(heading=f"ms, {of}", unit="milliseconds", rank=rank),
        Column(heading=f"p90 ms, {of}", unit="milliseconds", rank=rank + 5),
        Column(heading=f"/ eager, {of}", unit="ratio", rank=rank),
        Column(heading=f"images/s, {of}", unit="count", rank=rank + 6),
    )


def _latency_cells(of: Latency) -> tuple[float, ...]:
    return (of.p50_ms, of.p90_ms, of.eager_ratio, of.images_per_second)


def _caption(measured: Sequence[FormatFigures], choice: Choice | None) -> str:
    live = measured[0]
    rounds = "each format in a process of its own, in turn with PyTorch on the live model, deltas merged where possible"
    threads = "1 thread" if live.threads == 1 else f"{live.threads} threads"
    parts = [] if choice is None else [str(choice)]
    parts.append(
        f"{_images(live.images)} of {live.split}; {rounds}; {threads}. ms: median; / eager: median over rounds of the "
        "time over PyTorch's. Memory: resident, beyond interpreter, packages and images, at its peak while loading and "
        "running each batch once. Gray: another format is at least as good in latency, size and accuracy."
    )
    marks = [any(of) for of in zip(*map(_marks, measured))]
    explained = (
        "! differs more from the live model than its format promises.",
        f"† used more than {threads}.",
        "‡ its batch is fixed"
        + "".join(f" ({batch})" for batch in sorted({each.fixed_batch for each in measured if each.fixed_batch}))
        + ": larger ones run in parts.",
    )
    return " ".join([*parts, *(text for text, applies in zip(explained, marks) if applies)])


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
    fault = "" if each.passed else "it differs more from the live model than its format promises"
    return MeasuredFormat(each.name, values, relative, fault)


def _interval(each: FormatFigures) -> str | None:
    if each.accuracy is None:
        return None
    return f"{100 * each.accuracy.low:.1f}–{100 * each.accuracy.high:.1f}"


def _images(count: int) -> str:
    return f"{count:,}{SPACE}image{'s' * (count != 1)}"
