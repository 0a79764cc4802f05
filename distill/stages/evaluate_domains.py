"""Evaluates models on the target domain, and the student on the source domain too."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.data.base import UNLABELED, Split
from distill.deltas.statistics import Normalization
from distill.files import write_atomic
from distill.models.normalization import normalized_by, statistics_of
from distill.report.items import Column, Item, Metric, Note, Table, TableRow
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.aligned_source import predict_all
from distill.stages.evaluate import Evaluate, Evaluation
from distill.stages.measure_domains import some_of, target_of
from distill.stages.outputs import EvaluatedModel, TrainedStudent
from distill.training.evaluate import Predictions
from distill.transfer.label_free import class_fractions, scores, warnings_about

SCORES, SOURCE = "scores.json", "source.json"
IMAGES = 1024
"""Unlabeled target images whose predictions are scored."""


@dataclass(frozen=True)
class EvaluateTarget(Evaluate):
    """Evaluates models on the test split of the target domain: the only stage, but an oracle, that reads its labels.

    Without such a split, the predictions are those for its training images, and there are no accuracies.

    Args:
        classes: of the models, where all images of the data are of the target; None: it is ``data.target``.
    """

    classes: tuple[str, ...] | None = None

    def check(self, context: RunContext) -> Evaluation | None:
        return super().check(self._within(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return super().key(self._within(context))

    def run(self, context: RunContext, folder: Path) -> Evaluation:
        return super().run(self._within(context), folder)

    def load(self, context: RunContext, folder: Path) -> Evaluation:
        return super().load(self._within(context), folder)

    def report(self, context: RunContext, output: Evaluation) -> Iterable[Item]:
        yield from super().report(self._within(context), output)
        if all((of.labels == UNLABELED).all() for of in output.predictions.values()):
            yield Note(text="the target domain has no test split with labels, so there are no accuracies on it")

    def _split(self, context: RunContext) -> Split:
        return "test" if context.data.has_split("test") else "train"

    def _within(self, context: RunContext) -> RunContext:
        return replace(context, data=target_of(context, self.classes))

    def _predict_models(self, context: RunContext, split: Split) -> dict[str, Predictions]:
        return predict_all(context, self._models(context), split)


@dataclass(frozen=True)
class SourceAccuracy:
    """Accuracies on the test images of the source domain."""

    split: Split
    accuracies: dict[str, float | None]


@dataclass(frozen=True)
class EvaluateSource(Stage[SourceAccuracy]):
    """Evaluates the student on the source domain, to show what adaptation has cost there.

    Args:
        source: the source-only student.
        student: the adapted one; with a ``statistics`` delta also with the source's own statistics.
    """

    source: Ref[TrainedStudent]
    student: Ref[TrainedStudent]

    def check(self, context: RunContext) -> SourceAccuracy | None:
        if context.find(self.source) is None or context.find(self.student) is None:
            return None
        with trying(f"{self.name}: the predictions on a batch of the source domain"):
            return self._evaluated(context)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"data": context.data.fingerprint()}

    def run(self, context: RunContext, folder: Path) -> SourceAccuracy:
        made = self._evaluated(context)
        if is_first_rank():
            write_atomic(folder / SOURCE, json.dumps(vars(made), indent=2).encode())
        return made

    def load(self, context: RunContext, folder: Path) -> SourceAccuracy:
        return SourceAccuracy(**json.loads((folder / SOURCE).read_text()))

    def report(self, context: RunContext, output: SourceAccuracy) -> Iterable[Item]:
        rows = tuple(TableRow(cells=(name, value)) for name, value in output.accuracies.items())
        columns = (Column(heading="model"), Column(heading=f"{output.split} accuracy", unit="percent"))
        yield Table(title="On the source domain", columns=columns, rows=rows, caption="What adaptation costs there.")
        for name, value in output.accuracies.items():
            if value is not None:
                yield Metric(name=f"source {output.split} accuracy of {name}", value=value, seed=context.seed)

    def _evaluated(self, context: RunContext) -> SourceAccuracy:
        split: Split = "test" if context.data.has_split("test") else "val"
        if not context.data.has_split(split):
            return SourceAccuracy(split, {})
        source, student = context.get(self.source), context.get(self.student)
        accuracies = {model.name: model.predict(context, split).accuracy() for model in (source, student)}
        if statistics := statistics_of(student.student.model):
            normalization: Normalization = "source"
            with normalized_by(statistics, normalization):
                accuracy = student.predict(context, split).accuracy()
            accuracies[f"{student.name}, statistics of the source"] = accuracy
        return SourceAccuracy(split, accuracies)


@dataclass(frozen=True)
class LabelFreeScores:
    """Scores of models on unlabeled target images, and warnings about their predictions."""

    images: int
    scores: dict[str, dict[str, float]]
    warnings: list[str]


@dataclass(frozen=True)
class ScoreWithoutLabels(Stage[LabelFreeScores]):
    """Scores the predictions for training images of the target domain. Nothing depends on the scores.

    Args:
        models: that are scored; one that is None does not exist.
        classes: of the models, where all images of the data are of the target; None: the data has a source domain, with
            whose class shares the predictions are compared.
    """

    models: tuple[Ref[EvaluatedModel | None], ...]
    classes: tuple[str, ...] | None = None

    def check(self, context: RunContext) -> LabelFreeScores | None:
        if any(context.find(ref) is not None for ref in self.models):
            with trying(f"{self.name}: the predictions on a batch of the target domain"):
                return self._scored(context)
        return None

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"data": target_of(context, self.classes).fingerprint("train"), "images": IMAGES}

    def run(self, context: RunContext, folder: Path) -> LabelFreeScores:
        made = self._scored(context)
        if is_first_rank():
            write_atomic(folder / SCORES, json.dumps(vars(made), indent=2).encode())
        return made

    def load(self, context: RunContext, folder: Path) -> LabelFreeScores:
        return LabelFreeScores(**json.loads((folder / SCORES).read_text()))

    def report(self, context: RunContext, output: LabelFreeScores) -> Iterable[Item]:
        names = list(next(iter(output.scores.values()), {}))
        columns = (Column(heading="model"), *(Column(heading=name.replace("_", " "), unit="text") for name in names))
        rows = tuple(
            TableRow(cells=(model, *(f"{own[name]:.3f}" for name in names))) for model, own in output.scores.items()
        )
        caption = (
            f"Of {output.images:,} training images of the target, without labels. Nothing was chosen by them, "
            "since on other shifts they prefer the worst model as often as the best. Entropy: lower is surer; of the "
            "others higher is said to be better."
        )
        yield Table(title="Scores without labels (not used)", columns=columns, rows=rows, caption=caption)
        yield from (Note(text=line) for line in output.warnings)

    def _scored(self, context: RunContext) -> LabelFreeScores:
        target = some_of(target_of(context, self.classes), IMAGES)
        within = replace(context, data=target)
        source_K = None
        labels = torch.from_numpy(context.data.subset("train").labels) if self.classes is None else torch.empty(0)
        if len(labels := labels[labels != UNLABELED]):
            source_K = labels.bincount(minlength=len(target.classes)).double() / len(labels)
        made, lines, images = {}, [], 0
        models = [model for ref in self.models if (model := context.find(ref)) is not None]
        for name, predictions in predict_all(within, models, "train").items():
            logits = predictions.logits
            made[name], images = scores(logits), len(logits)
            if context.trial is None:
                lines += warnings_about(name, class_fractions(logits), source_K, target.classes)
        return LabelFreeScores(images, made, lines)
