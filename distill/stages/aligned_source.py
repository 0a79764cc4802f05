"""Controls without training on the target: a source-only student with other normalizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.data.base import Split
from distill.models.student import Student
from distill.report.items import Row
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage
from distill.stages.measure_domains import DomainMoments, with_statistics
from distill.stages.outputs import EvaluatedModel, TrainedStudent
from distill.training.evaluate import Predictions
from distill.transfer.moments import standardized


@dataclass(frozen=True)
class AlignedModel(EvaluatedModel):
    """A student whose normalization was changed, not its other weights.

    Args:
        model: a timm model, with or without deltas.
        like: the student that it was made from, for the size of its input.
        bytes: of the tensors to store for it.
        seconds: wall time of measuring the statistics.
    """

    model: nn.Module
    like: Student
    bytes: int
    seconds: float

    def predict(self, context: RunContext, split: Split) -> Predictions:
        spec = self.like.input
        return context.predict(self.model, self._logits, spec, context.loader(split, spec))

    def _logits(self, view: Tensor) -> Tensor:
        logits: Tensor = self.model(view)
        return logits

    def row(self) -> Row:
        return Row(name=self.name, what=self.what, bytes=self.bytes, seconds=self.seconds)


@dataclass(frozen=True)
class MeanModel(EvaluatedModel):
    """The mean of the probabilities of several models."""

    models: tuple[EvaluatedModel, ...]

    def predict(self, context: RunContext, split: Split) -> Predictions:
        return self.of([model.predict(context, split) for model in self.models])

    def of(self, every: Sequence[Predictions]) -> Predictions:
        """The mean of predictions that the models have made."""
        mean = torch.stack([own.logits.softmax(1) for own in every]).mean(0)
        logits, first = mean.clamp(min=torch.finfo(mean.dtype).tiny).log(), every[0]
        return Predictions(logits, first.labels.clone(), first.ids.clone())  # a file holds no tensor twice

    def row(self) -> Row:
        rows = [model.row() for model in self.models]
        return Row(name=self.name, what=self.what, bytes=sum(row.bytes or 0 for row in rows), seconds=rows[0].seconds)


def predict_all(context: RunContext, models: Sequence[EvaluatedModel], split: Split) -> dict[str, Predictions]:
    """Predictions of several models on a split, by name; a mean is made of those of its models, if these are there.

    Args:
        context: of the run.
        models: in any order.
        split: of the data.

    Returns:
        In the order of ``models``.
    """
    made = {model.name: model.predict(context, split) for model in models if not isinstance(model, MeanModel)}
    for mean in [model for model in models if isinstance(model, MeanModel)]:
        every = [made.get(own.name) or own.predict(context, split) for own in mean.models]
        made[mean.name] = mean.of(every)
    return {model.name: made[model.name] for model in models}


@dataclass(frozen=True)
class AlignedSource(Stage[AlignedModel | None]):
    """A control that is made of the source-only student and moments of both domains in no time, and so not recorded.

    Args:
        source: the source-only student.
        moments: of both domains.
    """

    source: Ref[TrainedStudent]
    moments: Ref[DomainMoments]

    recorded: ClassVar[bool] = False

    def check(self, context: RunContext) -> AlignedModel | None:
        return self.run(context, Path()) if context.find(self.source) and context.find(self.moments) else None

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def load(self, context: RunContext, folder: Path) -> AlignedModel | None:
        return self.run(context, folder)


@dataclass(frozen=True)
class StandardizeHead(AlignedSource):
    """A control: the head reads features standardized by domain. None if no scaling can be folded into the head."""

    def run(self, context: RunContext, folder: Path) -> AlignedModel | None:
        trained, own = context.get(self.source), context.get(self.moments)
        if own.source is None or own.target is None:
            return None
        model = standardized(trained.student.model, own.source, own.target)
        size = trained.row().bytes or 0
        what = "source only, features standardized by domain and folded into the head"
        return AlignedModel("standardized", what, model, trained.student, size, own.seconds)


@dataclass(frozen=True)
class AdaptStatistics(AlignedSource):
    """A control: the batch-norm statistics are those of the target (AdaBN). None for a network without batch norms."""

    def run(self, context: RunContext, folder: Path) -> AlignedModel | None:
        trained, own = context.get(self.source), context.get(self.moments)
        student = with_statistics(trained, own.statistics) if own.statistics else None
        if student is None:
            return None
        size = sum(t.numel() * t.element_size() for t in student.own_state().values())
        what = "source only, batch-norm statistics of the target (AdaBN)"
        return AlignedModel("AdaBN", what, student.model, trained.student, size, own.seconds)


@dataclass(frozen=True)
class MeanOfNormalizations(Stage[MeanModel | None]):
    """A control: the mean of the answers of other controls. None if one of them does not exist.

    Args:
        models: the controls.
    """

    models: tuple[Ref[AlignedModel | None], ...]

    recorded: ClassVar[bool] = False

    def check(self, context: RunContext) -> MeanModel | None:
        made = [context.find(ref) for ref in self.models]
        return None if None in made else self.run(context, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> MeanModel | None:
        models = [model for ref in self.models if (model := context.get(ref)) is not None]
        if len(models) < len(self.models):
            return None
        what = "mean of the probabilities of " + " and ".join(model.name for model in models)
        return MeanModel("mean of both", what, tuple(models))

    def load(self, context: RunContext, folder: Path) -> MeanModel | None:
        return self.run(context, folder)
