"""The measured models of a stream: accuracy matrix, metrics, and bytes after each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.continual.metrics import StreamMetrics, measure_stream
from distill.continual.orders import StageBytes
from distill.continual.scores import Setting, TaskScores, accuracy_matrix


@dataclass(frozen=True)
class MeasuredModel:
    """A model of a stream in one setting.

    Args:
        name: of the model.
        setting: of its evaluation.
        matrix: a [T, T], NaN where nothing was measured.
        metrics: of the matrix.
        bytes: of its files after each task; empty if they are not known.
        seconds: wall time of all tasks.
    """

    name: str
    setting: Setting
    matrix: tuple[tuple[float, ...], ...]
    metrics: StreamMetrics
    bytes: tuple[StageBytes, ...]
    seconds: float


@dataclass(frozen=True)
class StreamResult:
    """All models of a stream.

    Args:
        tasks: names, in the order in which they were learned.
        models: one for each model and setting.
        images: test images of each task.
        backbone: bytes of the backbone's weights without its head; 0: not known.
    """

    tasks: tuple[str, ...]
    models: tuple[MeasuredModel, ...]
    images: tuple[int, ...] = ()
    backbone: int = 0


def measured(tasks: Sequence[str], collected: Sequence[TaskScores], starts: Sequence[TaskScores] = ()) -> StreamResult:
    """The models in a collection of scores.

    Args:
        tasks: names of all tasks, in their order.
        collected: scores of some models after each task.
        starts: scores of models before the first task, for forward transfer; it is not defined for other models.

    Returns:
        Each model that is measured after the last task with its metrics, in the order in which it first appears.
    """
    stages = [_merged(task, [scores for scores in collected if scores.task == task]) for task in tasks]
    names = dict.fromkeys(
        (name, setting) for stage in stages for name in stage.scores for setting in stage.scores[name]
    )
    models, images = [], [0] * len(tasks)
    for name, setting in names:
        matrix, counts = accuracy_matrix(tasks, stages, name, setting)
        images = [max(pair) for pair in zip(images, counts.tolist())]
        sizes = tuple(_bytes(stage, name) for stage in stages) if any(name in stage.served for stage in stages) else ()
        seconds = sum(stage.seconds.get(name, 0.0) for stage in stages)
        rows = tuple(map(tuple, matrix.tolist()))
        start = next((start for start in starts if setting in start.scores.get(name, {})), None)
        of_start = accuracy_matrix(tasks, [start], name, setting)[0][0] if start else None
        models.append(MeasuredModel(name, setting, rows, measure_stream(matrix, counts, of_start), sizes, seconds))
    return StreamResult(tuple(tasks), tuple(models), tuple(images), max(stage.backbone for stage in stages))


def _bytes(stage: TaskScores, name: str) -> StageBytes:
    missing = float("nan")
    served, kept = stage.served.get(name, missing), stage.kept.get(name, missing)
    return StageBytes(served, kept, stage.peak.get(name, kept))


def _merged(task: str, scores: list[TaskScores]) -> TaskScores:
    together: dict[str, dict[Any, Any]] = {}
    for each in scores:
        for name, settings in each.scores.items():
            for setting, of_task in settings.items():
                together.setdefault(name, {}).setdefault(setting, {}).update(of_task)
    parts = {
        key: {name: value for each in scores for name, value in getattr(each, key).items()}
        for key in ("served", "kept", "peak", "seconds")
    }
    return TaskScores(task=task, scores=together, backbone=max((s.backbone for s in scores), default=0), **parts)
