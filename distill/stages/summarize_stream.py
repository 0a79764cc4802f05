"""Accuracy matrices and metrics of all models of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.continual.metrics import StreamMetrics, measure_stream
from distill.continual.scores import Setting, TaskScores, accuracy_matrix
from distill.report.items import Item, Matrix, Metric, Note, Row
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage
from distill.stages.evaluate_task import TaskEvaluation
from distill.stages.fit_heads import FittedHeads
from distill.stages.stream_controls import ControlScores

TITLES: dict[Setting, str] = {"class": "class-incremental", "task": "task-incremental", "domain": "domain-incremental"}


@dataclass(frozen=True)
class MeasuredModel:
    """A model of a stream in one setting."""

    name: str
    setting: Setting
    matrix: tuple[tuple[float, ...], ...]
    metrics: StreamMetrics
    served: int
    kept: int
    seconds: float


@dataclass(frozen=True)
class StreamResult:
    """All models of a stream."""

    tasks: tuple[str, ...]
    models: tuple[MeasuredModel, ...]


@dataclass(frozen=True)
class SummarizeStream(Stage[StreamResult]):
    """Collects the scores of all stages.

    Args:
        tasks: names of the tasks, in their order.
        model: name of the experiment's own learner.
        evaluations: of every learner, after each task.
        heads: after each task.
        controls: of the stream.
    """

    tasks: tuple[str, ...]
    model: str
    evaluations: tuple[Ref[TaskEvaluation], ...]
    heads: tuple[Ref[FittedHeads], ...] = ()
    controls: Ref[ControlScores] | None = None

    first_rank: ClassVar[bool] = True
    recorded: ClassVar[bool] = False

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> StreamResult:
        collected = [context.get(ref).scores for ref in self.evaluations]
        collected += [context.get(ref).scores for ref in self.heads]
        if self.controls is not None:
            collected += context.get(self.controls).stages
        stages = [_merged(task, [scores for scores in collected if scores.task == task]) for task in self.tasks]
        names = dict.fromkeys(
            (name, setting) for stage in stages for name in stage.scores for setting in stage.scores[name]
        )
        models = []
        for name, setting in names:
            matrix, images = accuracy_matrix(self.tasks, stages, name, setting)
            models.append(
                MeasuredModel(
                    name,
                    setting,
                    tuple(map(tuple, matrix.tolist())),
                    measure_stream(matrix, images),
                    stages[-1].served.get(name, 0),
                    stages[-1].kept.get(name, 0),
                    sum(stage.seconds.get(name, 0.0) for stage in stages),
                )
            )
        return StreamResult(self.tasks, tuple(models))

    def load(self, context: RunContext, folder: Path) -> StreamResult:
        return self.run(context, folder)

    def report(self, context: RunContext, output: StreamResult) -> Iterable[Item]:
        for model in output.models:
            yield Row(
                name=f"{model.name}, {model.setting}",
                what=TITLES[model.setting],
                accuracy=model.metrics.accuracy_micro,
                bytes=model.served,
                seconds=model.seconds,
            )
        for model in output.models:
            yield Matrix(
                title=f"{model.name}, {TITLES[model.setting]}",
                rows=tuple(f"after {task}" for task in output.tasks),
                columns=output.tasks,
                values=tuple(tuple(None if math.isnan(value) else value for value in row) for row in model.matrix),
            )
            for name, value in asdict(model.metrics).items():
                if isinstance(value, float) and not math.isnan(value):
                    yield Metric(name=f"{model.name}, {model.setting}: {name}", value=value, seed=context.seed)
        slda = {model.setting: model for model in output.models if model.name == "slda"}
        for model in output.models:
            control = slda.get(model.setting)
            if control is None or not model.name.startswith(self.model):
                continue
            if model.metrics.accuracy_micro < control.metrics.accuracy_micro:
                yield Note(
                    text=f"{model.name} ({TITLES[model.setting]}) is trained and stays below SLDA on frozen features: "
                    f"{model.metrics.accuracy_micro:.1%} against {control.metrics.accuracy_micro:.1%}"
                )


def _merged(task: str, scores: list[TaskScores]) -> TaskScores:
    together: dict[str, dict[Any, Any]] = {}
    for each in scores:
        for name, settings in each.scores.items():
            together.setdefault(name, {}).update(settings)
    parts = {
        key: {name: value for each in scores for name, value in getattr(each, key).items()}
        for key in ("served", "kept", "seconds")
    }
    return TaskScores(task=task, scores=together, **parts)
