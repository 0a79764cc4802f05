"""Closed-form heads after a task, and the sums that they were fitted from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.continual.heads.shared import HeadSums
from distill.continual.scores import TaskScores


@dataclass(frozen=True)
class FittedHeads:
    """The sums up to a task, and the heads that are fitted from them."""

    sums: HeadSums
    held_out: HeadSums
    scores: TaskScores
    folder: Path
    of_tasks: HeadSums
    """Those that task inference reads: ``sums``, or with ``by_task`` others, whose classes are :func:`class_of`."""
