"""Accuracy matrices and metrics of all models of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.continual.fitted_heads import FittedHeads
from distill.continual.measured import StreamResult, measured
from distill.report.items import Item
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage
from distill.stages.evaluate_task import TaskEvaluation
from distill.stages.stream_controls import ControlScores
from distill.stages.stream_items import stream_items


@dataclass(frozen=True)
class SummarizeStream(Stage[StreamResult]):
    """Collects the scores of all stages.

    Args:
        tasks: names of the tasks, in their order.
        model: name of the experiment's own learner.
        evaluations: of every learner, after each task.
        heads: after each task.
        controls: of the stream.
        before: scores that stay true of the tasks of a run that this one goes on with.
        starts: of the experiment's own learner before the first task.
    """

    tasks: tuple[str, ...]
    model: str
    evaluations: tuple[Ref[TaskEvaluation], ...]
    heads: tuple[Ref[FittedHeads], ...] = ()
    controls: Ref[ControlScores] | None = None
    before: Ref[ControlScores] | None = None
    starts: tuple[Ref[TaskEvaluation], ...] = ()

    first_rank: ClassVar[bool] = True
    recorded: ClassVar[bool] = False

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> StreamResult:
        collected = [context.get(ref).scores for ref in self.evaluations]
        collected += [context.get(ref).scores for ref in self.heads]
        for ref in (self.controls, self.before):
            collected += context.get(ref).stages if ref is not None else ()
        return measured(self.tasks, collected, [context.get(ref).scores for ref in self.starts])

    def load(self, context: RunContext, folder: Path) -> StreamResult:
        return self.run(context, folder)

    def report(self, context: RunContext, output: StreamResult) -> Iterable[Item]:
        trained = {name for ref in self.evaluations for name in context.get(ref).scores.scores}
        return stream_items(output, self.model, trained, context.seed)
