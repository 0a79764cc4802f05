"""Controls without training on the target: a source-only student with other normalizations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from distill.data.base import Split
from distill.deltas.base import stored_bytes
from distill.models.student import Student
from distill.report.items import Item, Note, Row
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage
from distill.stages.measure_domains import DomainMoments, with_statistics
from distill.stages.outputs import EvaluatedModel, TrainedStudent
from distill.training.evaluate import Predictions
from distill.transfer.moments import standardized
from distill.transfer.start import Moments


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
    missing: ClassVar[str]
    """Says that, and why, there is no such model."""

    def check(self, context: RunContext) -> AlignedModel | None:
        return self.run(context, Path()) if context.find(self.source) and context.find(self.moments) else None

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def load(self, context: RunContext, folder: Path) -> AlignedModel | None:
        return self.run(context, folder)

    def report(self, context: RunContext, output: AlignedModel | None) -> Iterable[Item]:
        if output is None:
            yield Note(text=self.missing)


@dataclass(frozen=True)
class StandardizeHead(AlignedSource):
    """A control: the head reads features standardized by domain. None if no scaling can be folded into the head."""

    missing: ClassVar[str] = "no row standardized: the head is not one plain linear layer that a scaling folds into"

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
    """A control: the batch-norm statistics are those of the target's images (AdaBN). None without batch norms."""

    missing: ClassVar[str] = "no row AdaBN: the network has no batch norms with running statistics"

    def run(self, context: RunContext, folder: Path) -> AlignedModel | None:
        own = context.get(self.moments)
        what = "source only, batch-norm statistics of the target's images (AdaBN)"
        return self._with(context, "AdaBN", what, own.plain or own.statistics)

    def _with(
        self, context: RunContext, name: str, what: str, statistics: Mapping[str, Moments]
    ) -> AlignedModel | None:
        """The student with other statistics; None without batch norms.

        Args:
            context: of the run.
            name: of the row.
            what: it is.
            statistics: site of a batch norm → statistics.

        Returns:
            The model.
        """
        trained = context.get(self.source)
        student = with_statistics(trained, statistics) if statistics else None
        if student is None:
            return None
        size = stored_bytes(student.own_state())
        return AlignedModel(name, what, student.model, trained.student, size, context.get(self.moments).seconds)


@dataclass(frozen=True)
class AlignStatistics(AdaptStatistics):
    """A control: batch-norm statistics of the target, aligned with the source's. None without them.

    See :func:`distill.transfer.moments.aligned`; a student with a ``statistics`` delta starts from these.
    """

    missing: ClassVar[str] = "no row aligned statistics: there are no batch norms, or no moments of the source for them"

    def run(self, context: RunContext, folder: Path) -> AlignedModel | None:
        own = context.get(self.moments)
        what = "source only, batch-norm statistics of the target, aligned with the source's"
        return self._with(context, "aligned statistics", what, own.statistics if own.norms else {})


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

    def report(self, context: RunContext, output: MeanModel | None) -> Iterable[Item]:
        if output is None:
            missing = ", ".join(ref.stage for ref in self.models if context.find(ref) is None)
            yield Note(text=f"no row mean of both: it needs {missing}, which this network does not have")
