"""Reads the log of a fit."""

from __future__ import annotations

import csv
from pathlib import Path

from distill.report.items import Curves, Series

COLUMNS = ("step", "epoch", "name", "value")


def read_curves(path: Path) -> Curves:
    """The curves of a log with the columns ``step,epoch,name,value``, one row per value.

    An incomplete last line, which a killed run leaves, is ignored.

    Raises:
        ValueError: another line is not such a row; the text names file and line.
    """
    logged: dict[str, list[tuple[int, int, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        text = file.read()
    lines = list(csv.reader(text.splitlines()))
    for number, line in enumerate(lines, start=1):
        if number == 1 and tuple(line) == COLUMNS:
            continue
        try:
            step, epoch, name, value = line
            row = int(step), int(epoch), float(value)
        except ValueError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number}: expected {','.join(COLUMNS)}, got {','.join(line)!r}") from error
        logged.setdefault(name, []).append(row)
    return {
        name: Series(
            steps=tuple(r[0] for r in rows), epochs=tuple(r[1] for r in rows), values=tuple(r[2] for r in rows)
        )
        for name, rows in logged.items()
    }
