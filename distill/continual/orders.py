"""How much results depend on the order of the tasks, and how much a stream's files grow.

Order disparity: Yoon et al., Scalable and Order-robust Continual Learning with Additive Parameter Decomposition, arXiv
1902.09432.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Disparity:
    """Spread of the tasks' final accuracies over R runs, matched by the name of the task."""

    by_task: Mapping[str, float]
    """OPD of each task: ``max_r − min_r`` of its accuracy at the end of run r. NaN if no run measured it."""
    runs: int
    """R. The spread grows with it."""

    @property
    def average(self) -> float:
        """AOPD: mean of OPD over the tasks that have one; NaN without any."""
        known = self._known()
        return sum(known) / len(known) if known else float("nan")

    @property
    def maximum(self) -> float:
        """MOPD: maximum of OPD over the tasks; NaN without any."""
        return max(self._known(), default=float("nan"))

    def _known(self) -> list[float]:
        return [value for value in self.by_task.values() if value == value]


def order_disparity(final: Sequence[Mapping[str, float]]) -> Disparity:
    """OPD, AOPD and MOPD over runs that learn the same tasks in different orders.

    The same number over as many *seeds* in one order is the noise that it has to exceed: report both.

    Args:
        final: for each run, name of a task → its accuracy after the last task. Tasks are matched by name: their
            positions differ by run. NaN where a run did not measure one.

    Returns:
        The spread of each task, in the order of the first run.

    Raises:
        ValueError: there are fewer than two runs, or the runs have different tasks; the text names these.
    """
    if len(final) < 2:
        raise ValueError(f"the spread over orders needs at least two runs, got {len(final)}")
    for number, run in enumerate(final):
        if differing := sorted(set(run) ^ set(final[0])):
            raise ValueError(f"run {number} has other tasks than run 0: {', '.join(differing)}")
    spread = {}
    for task in final[0]:
        known = [run[task] for run in final if run[task] == run[task]]
        spread[task] = max(known) - min(known) if known else float("nan")
    return Disparity(spread, len(final))


@dataclass(frozen=True)
class StageBytes:
    """Bytes of real files after one stage, or the same as fractions of the backbone's bytes (:func:`growth`)."""

    served: float
    """What prediction reads: deltas and heads, with indices, biases and statistics of norms."""
    kept: float
    """What the next task reads: the served ones, memory, sums, Fisher information, the old model."""
    peak: float
    """The most at any time of the stage, with what is deleted at its end."""


def growth(stages: Sequence[StageBytes], backbone_bytes: int) -> list[StageBytes]:
    """Bytes after each stage as fractions of the backbone's file.

    Args:
        stages: cumulative bytes after each stage.
        backbone_bytes: size of the backbone's weights.

    Returns:
        One entry for each stage: 0.15 is 15 % of the backbone.

    Raises:
        ValueError: the backbone has no bytes.
    """
    if backbone_bytes < 1:
        raise ValueError(f"growth is measured against the backbone's bytes, got {backbone_bytes}")
    return [StageBytes(*(part / backbone_bytes for part in (stage.served, stage.kept, stage.peak))) for stage in stages]
