"""Shared by the benchmarks: rows with their spread, timing by turns, a table and a file of rows."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

# This folder has an augment.py, which must not hide the package of that name: scripts import this file first.
if Path(sys.path[0]).resolve() == Path(__file__).parent:
    sys.path.append(sys.path.pop(0))


@dataclass(frozen=True)
class Row:
    """One measured figure: a median, with the quartiles ``low`` and ``high`` of the measurements."""

    name: str
    value: float
    unit: str
    low: float
    high: float


def step_options(about: str | None) -> argparse.ArgumentParser:
    """The options of a benchmark of whole training steps; ``about`` is its docstring."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, and 128 pixels: about a minute on two cores"
    )
    parser.add_argument("--size", type=int, default=None, help="input pixels; default 224")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    return parser


def row(name: str, values: Sequence[float], unit: str) -> Row:
    """The row of several measurements of the same thing. Raises ``ValueError`` without any."""
    if not len(values):
        raise ValueError(f"{name}: nothing was measured")
    low, value, high = np.percentile(values, (25, 50, 75)).tolist()
    return Row(name, value, unit, low, high)


def ratio(name: str, over: Sequence[float], under: Sequence[float]) -> Row:
    """The row of ``over[i] / under[i]``, two sides measured right after each other in round i."""
    return row(name, [a / b for a, b in zip(over, under, strict=True)], "×")


def exact(name: str, value: float, unit: str) -> Row:
    """The row of a figure that is the same every time."""
    return Row(name, value, unit, value, value)


def seconds_by_turns(
    sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds per call of each side. In every round each side is called once; two rounds of warm-up do not count.

    Args:
        sides: name → what is timed.
        rounds: rounds that count.
        clock: seconds, read once the device has finished its work.

    Returns:
        Name → seconds, a number for each round.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 2):
        for side, run in sides.items():
            begun = clock()
            run()
            if number > 1:
                seconds[side].append(clock() - begun)
    return seconds


class Turns:
    """Yields batches to a loop and measures the time until the loop asks for the next: everything it does in a step.

    In every round each side has a turn: ``before(side)`` prepares it untimed, then ``window`` batches are yielded and
    timed together. So the sides are interleaved, and a temporarily slow machine is slow for all of them.

    Args:
        batch: the batch to yield.
        sides: their names, in the order of their turns.
        rounds: rounds that count.
        warmup: rounds before them that do not count.
        window: batches in a turn; more than one where the host runs ahead of the device.
        before: called at the start of a turn with the side's name.
        clock: seconds, read once the device has finished its work.
    """

    def __init__(
        self,
        batch: Any,
        sides: Sequence[str],
        rounds: int,
        warmup: int,
        window: int,
        before: Callable[[str], None],
        clock: Callable[[], float],
    ):
        self.batch, self.sides, self.window = batch, tuple(sides), window
        self.rounds, self.warmup, self.before, self.clock = rounds, warmup, before, clock
        self.seconds: dict[str, list[float]] = {side: [] for side in sides}
        """Side → seconds per batch, one number for each round that counts."""

    def __len__(self) -> int:
        # A loop never asks again after the last batch, so one more than what is timed.
        return (self.rounds + self.warmup) * len(self.sides) * self.window + 1

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.rounds + self.warmup):
            for side in self.sides:
                self.before(side)
                begun = self.clock()
                for _ in range(self.window):
                    yield self.batch
                if number >= self.warmup:
                    self.seconds[side].append((self.clock() - begun) / self.window)
        yield self.batch


def show(console: Console, title: str, rows: Sequence[Row], targets: dict[str, float]) -> None:
    """Print the rows; ``targets`` are upper limits by row name."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("figure", no_wrap=True)
    for heading in ("median", "quartiles", "unit", "target"):
        table.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for entry in rows:
        limit = targets.get(entry.name)
        verdict = "" if limit is None else f"[{'green' if entry.value <= limit else 'red'}]≤ {limit:g}[/]"
        table.add_row(entry.name, f"{entry.value:.3g}", f"{entry.low:.3g} … {entry.high:.3g}", entry.unit, verdict)
    console.print(table)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(entry) for entry in rows], indent=2) + "\n")
