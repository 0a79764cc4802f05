"""Shared by the parts of ``continual.py``: options, the file of results, and figures with their bars."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan, nan
from statistics import mean
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from accuracy import Notebook
from measure import Row
from rich.console import Console

from distill.training.signals import StopSignal

BARS: dict[str, tuple[str, float]] = {
    "slda_last_flowers": ("≥", 0.90),
    "ridge_last_flowers": ("≥", 0.89),
    "ncm_last_flowers": ("≥", 0.825),
    "slda_last_cifar": ("≥", 0.535),
    "bank_forgetting": ("=", 0.0),
    "bank_opd": ("=", 0.0),
    "bank_served_bytes_a_task": ("≤", 200_000),
    "bank_til_minus_heads": ("≥", 0.01),
    "adapted_slda_minus_slda": ("≥", 0.01),
    "halrp_acc_minus_sequential": ("≥", 0.10),
    "halrp_growth": ("≤", 0.2),
    "stream_overhead": ("≤", 0.05),
    "quick_bank_forgetting": ("=", 0.0),
    "quick_stream_seconds": ("≤", 300.0),
}
"""Figure → what it must be. All others are shown without a verdict."""


class NotMeasuredError(Exception):
    """Nothing may be measured, and the file of results lacks this."""


@dataclass(frozen=True)
class Figure:
    """A measured figure: its mean, smallest and largest value over seeds, orders or rounds.

    Args:
        row: name, mean, unit, smallest, largest; all NaN if it is not measured.
        detail: over what, and of which sizes.
    """

    row: Row
    detail: str

    @property
    def is_measured(self) -> bool:
        return not isnan(self.row.value)

    @property
    def bar(self) -> str:
        """The bar, and whether it is reached if the figure is measured; empty without one."""
        if self.row.name not in BARS:
            return ""
        sign, limit = BARS[self.row.name]
        if not self.is_measured:
            return f"{sign} {limit:g}"
        value = self.row.value
        reached = value == limit if sign == "=" else value >= limit if sign == "≥" else value <= limit
        return f"{sign} {limit:g} {'reached' if reached else 'missed'}"


def figure(name: str, values: Sequence[float], unit: str, detail: str) -> Figure:
    """A figure of several values of the same thing; one that is not measured without any."""
    if not values:
        return Figure(Row(name, nan, unit, nan, nan), detail)
    return Figure(Row(name, mean(values), unit, min(values), max(values)), detail)


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
