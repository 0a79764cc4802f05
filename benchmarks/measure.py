"""What every benchmark needs: rows with their spread, a table of them, a file of them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

# This folder has an augment.py, which must not hide the package of that name: scripts import this file before it.
if Path(sys.path[0]).resolve() == Path(__file__).parent:
    sys.path.append(sys.path.pop(0))


@dataclass(frozen=True)
class Row:
    """One measured figure: a median, with the quartiles ``low`` and ``high`` of what it is the median of."""

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
    """The row of ``over[i] / under[i]``, two sides measured one right after the other in round i."""
    return row(name, [a / b for a, b in zip(over, under, strict=True)], "×")


class Turns:
    """Hands batches to a loop and takes the time until the loop asks for the next: everything it does in a step.

    In every round each side has a turn: ``before(side)`` prepares it untimed, then ``window`` batches are handed out
    and timed together. So sides are interleaved, and a machine that is slow for a while is slow for all of them.

    Args:
        batch: what is handed out.
        sides: their names, in the order of their turns.
        rounds, warmup: rounds that count, and rounds before them that do not.
        window: batches in a turn. More than one where the host runs ahead of the device.
        before: called at the start of a turn with the side's name.
        clock: seconds, once the device has done all it was asked to.
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
    for single in rows:
        limit = targets.get(single.name)
        verdict = "" if limit is None else f"[{'green' if single.value <= limit else 'red'}]≤ {limit:g}[/]"
        table.add_row(single.name, f"{single.value:.3g}", f"{single.low:.3g} … {single.high:.3g}", single.unit, verdict)
    console.print(table)


def save(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(single) for single in rows], indent=2) + "\n")
