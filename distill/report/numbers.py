"""Formats numbers for display: a dash for a missing value, units after a no-break space."""

from __future__ import annotations

from distill.report.items import Cell, Estimate, Unit
from distill.report.summary import finite

MISSING = "–"
SPACE = "\u00a0"
MINUS = "\u2212"


def percent(fraction: float | None) -> str:
    """0.962 → ``96.2 %``."""
    return f"{100 * fraction:.1f}{SPACE}%" if fraction is not None and finite(fraction) else MISSING


def between(estimate: Estimate) -> str:
    """The 95 % interval in percent: ``94.7 to 98.3``."""
    return f"{100 * estimate.low:.1f}{SPACE}to{SPACE}{100 * estimate.high:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign: 0.031 → ``+3.1``."""
    rounded = round(100 * difference, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def signed(count: int) -> str:
    """3 → ``+3``; negative numbers have a minus sign (U+2212)."""
    return f"{count:+d}".replace("-", MINUS) if count else "0"


def count(number: int | None) -> str:
    """4652008 → ``4,652,008``."""
    return MISSING if number is None else f"{number:,}"


def size(number: int | None) -> str:
    """Bytes in decimal units: 92400 → ``92.4 kB``."""
    if number is None:
        return MISSING
    for power, unit in enumerate(("B", "kB", "MB", "GB")):
        value = number / 1000**power
        if value < 999.5 or unit == "GB":
            break
    digits = f"{value:.0f}" if unit == "B" or value >= 100 else f"{value:.3g}"
    return f"{digits}{SPACE}{unit}"


def duration(seconds: float | None) -> str:
    """8.25 → ``8.2 s``, 75 → ``1 min 15 s``, 4000 → ``1 h 07 min``."""
    if seconds is None or not finite(seconds):
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}{SPACE}h {minutes:02d}{SPACE}min"


def cell(value: Cell, unit: Unit) -> str:
    """A cell of a table: percent without its sign, which the heading has."""
    if isinstance(value, str):
        return value
    if value is None or not finite(value):
        return MISSING
    if unit == "percent":
        return f"{100 * value:.1f}".replace("-", MINUS)
    if unit == "points":
        return points(value)
    if unit == "seconds":
        return _short_duration(value)
    if unit == "milliseconds":
        return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
    if unit == "ratio":
        return f"{value:.2f}"
    if unit == "error":
        return f"{value:.0e}" if value else "0"
    return size(round(value)) if unit == "bytes" else count(round(value))


def _short_duration(seconds: float) -> str:
    """8.25 → ``8.2 s``, 75 → ``75 s``, 4000 → ``67 min``, 9000 → ``2.5 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f}{SPACE}s"
    if seconds < 99.5:
        return f"{seconds:.0f}{SPACE}s"
    return f"{seconds / 60:.0f}{SPACE}min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f}{SPACE}h"
