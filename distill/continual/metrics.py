"""Metrics of a stream of tasks: pure functions of an accuracy matrix.

``a[t, i]`` is the accuracy on the test images of task i after task t was learned, both counted from 0, in [0, 1]; T is
the number of tasks. Entries i > t are accuracies on tasks that are not learned yet. NaN: not measured.

A task without test images has a column of NaN; it is left out of every mean, and so is any other entry that is NaN. A
mean of nothing is NaN: BWT, forgetting and FWT of a stream with T = 1, for example. A task of one class has an accuracy
like any other; within a task-incremental evaluation it is 1 by definition.

Shape suffixes: T tasks (rows: after which task; columns: which task), P points of evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

NAN = float("nan")


def accuracy_macro(a_TT: ArrayLike) -> float:
    """ACC, each task with the same weight: ``mean_i a[T−1, i]``."""
    return _mean(_square(a_TT)[-1])


def accuracy_micro(a_TT: ArrayLike, images_T: ArrayLike) -> float:
    """ACC, each test image with the same weight: ``Σ n_i a[T−1, i] / Σ n_i``.

    It differs from :func:`accuracy_macro` where tasks have different numbers of test images.

    Args:
        a_TT: accuracy matrix.
        images_T: n, test images of each task.
    """
    return float(seen_accuracies(a_TT, images_T)[-1])


def seen_accuracies(a_TT: ArrayLike, images_T: ArrayLike) -> np.ndarray:
    """Accuracy over all test images of the tasks seen so far, after each task.

    ``A_t = Σ_{i≤t} n_i a[t, i] / Σ_{i≤t} n_i``.

    Args:
        a_TT: accuracy matrix.
        images_T: n, test images of each task.

    Returns:
        float64 [T].

    Raises:
        ValueError: ``images_T`` has not one count for each task, or a negative one.
    """
    a_TT = _square(a_TT)
    images_T = np.asarray(images_T, dtype=float)
    if images_T.shape != a_TT.shape[:1] or not (images_T >= 0).all():
        raise ValueError(f"expected {len(a_TT)} counts of test images, one for each task, got {images_T}")
    return np.array([_mean(row[: t + 1], images_T[: t + 1]) for t, row in enumerate(a_TT)])


def average_incremental_accuracy(a_TT: ArrayLike, images_T: ArrayLike) -> float:
    """A-bar: the mean of :func:`seen_accuracies` over the stages.

    It depends on T and is not comparable with ACC: early stages have few classes.

    Args:
        a_TT: accuracy matrix.
        images_T: n, test images of each task.
    """
    return _mean(seen_accuracies(a_TT, images_T))


def backward_transfer(a_TT: ArrayLike) -> float:
    """BWT: ``mean_{i<T−1} (a[T−1, i] − a[i, i])``; negative where tasks were forgotten.

    Paper: Lopez-Paz and Ranzato, arXiv 1706.08840.
    """
    a_TT = _square(a_TT)
    return _mean((a_TT[-1] - a_TT.diagonal())[:-1])


def forgetting(a_TT: ArrayLike) -> float:
    """``mean_{i<T−1} (max_{i≤t<T−1} a[t, i] − a[T−1, i])``: the best earlier accuracy minus the last.

    The maximum leaves out the last stage and those before the task was learned, so it is negative where accuracy rose
    to the end. The last task cannot have been forgotten, so the mean is over T − 1 tasks. A model that never learns
    forgets nothing: read it together with :func:`plasticity`.

    Paper: Chaudhry et al., arXiv 1801.10112.
    """
    return _mean(forgetting_by_task(a_TT)[:-1])


def forgetting_by_task(a_TT: ArrayLike) -> np.ndarray:
    """Forgetting of each task, float64 [T]; NaN for the last one. See :func:`forgetting`."""
    a_TT = _square(a_TT)
    tasks = len(a_TT)
    peaks = [_largest(a_TT[i : tasks - 1, i]) for i in range(tasks)]
    return np.array(peaks) - a_TT[-1]


def plasticity(a_TT: ArrayLike) -> float:
    """How well tasks are learned when they come: ``mean_i a[i, i]``."""
    return _mean(_square(a_TT).diagonal())


def forward_transfer(a_TT: ArrayLike, start_T: ArrayLike) -> float:
    """FWT: ``mean_{i>0} (a[i−1, i] − r_i)``, accuracy on a task just before it is learned minus that of the start.

    It is NaN where accuracies on future tasks are not measured, as with heads that have no rows for unseen classes.

    Paper: Lopez-Paz and Ranzato, arXiv 1706.08840.

    Args:
        a_TT: accuracy matrix.
        start_T: r, accuracy on each task of the untrained start, measured once before the first task. The model
            before task i is no substitute: with it, FWT is zero for every method.

    Raises:
        ValueError: ``start_T`` has not one accuracy for each task.
    """
    a_TT = _square(a_TT)
    start_T = np.asarray(start_T, dtype=float)
    if start_T.shape != a_TT.shape[:1]:
        raise ValueError(f"expected {len(a_TT)} accuracies of the untrained start, got shape {start_T.shape}")
    return _mean(np.diagonal(a_TT, offset=1) - start_T[1:])


def minimum_accuracy(a_PT: ArrayLike, learned_T: Sequence[int] | None = None) -> float:
    """min-ACC: the lowest accuracy on each task at any later point of evaluation, mean over the tasks that have one.

    Paper: De Lange et al., Continual evaluation for lifelong learning, arXiv 2205.13452.

    Args:
        a_PT: accuracy on each task at each point; the accuracy matrix, or one with points inside of tasks too.
        learned_T: for each task, the row of ``a_PT`` at the end of its training. None: row i for task i.
    """
    a_PT = np.asarray(a_PT, dtype=float)
    learned = range(a_PT.shape[1]) if learned_T is None else learned_T
    return _mean(np.array([-_largest(-a_PT[row + 1 :, task]) for task, row in enumerate(learned)]))


@dataclass(frozen=True)
class StreamMetrics:
    """All metrics of one accuracy matrix; NaN where one is not defined."""

    accuracy_macro: float
    accuracy_micro: float
    average_incremental_accuracy: float
    backward_transfer: float
    forgetting: float
    plasticity: float
    forward_transfer: float
    minimum_accuracy: float
    seen_accuracies: tuple[float, ...]


def measure_stream(a_TT: ArrayLike, images_T: ArrayLike, start_T: ArrayLike | None = None) -> StreamMetrics:
    """All metrics of an accuracy matrix.

    Args:
        a_TT: accuracy matrix; rows of tasks that are not learned yet may be left out together with their columns.
        images_T: test images of each task.
        start_T: accuracy on each task of the untrained start; None leaves FWT undefined.

    Returns:
        Each metric, see the functions of the same names.
    """
    return StreamMetrics(
        accuracy_macro=accuracy_macro(a_TT),
        accuracy_micro=accuracy_micro(a_TT, images_T),
        average_incremental_accuracy=average_incremental_accuracy(a_TT, images_T),
        backward_transfer=backward_transfer(a_TT),
        forgetting=forgetting(a_TT),
        plasticity=plasticity(a_TT),
        forward_transfer=NAN if start_T is None else forward_transfer(a_TT, start_T),
        minimum_accuracy=minimum_accuracy(a_TT),
        seen_accuracies=tuple(seen_accuracies(a_TT, images_T).tolist()),
    )


def _square(a_TT: ArrayLike) -> np.ndarray:
    a_TT = np.asarray(a_TT, dtype=float)
    if a_TT.ndim != 2 or a_TT.shape[0] != a_TT.shape[1] or not a_TT.size:
        raise ValueError(f"expected an accuracy matrix of T x T with T of at least 1, got shape {a_TT.shape}")
    return a_TT


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Mean over the values that are not NaN; NaN if there are none, or none with a weight."""
    weights = np.ones_like(values) if weights is None else weights
    known = ~np.isnan(values) & (weights > 0)
    return float(values[known] @ weights[known] / weights[known].sum()) if known.any() else NAN


def _largest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else NAN
