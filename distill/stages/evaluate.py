"""Predictions of all models on the test split: the result table, and the comparison by class."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from distill.data.base import Split
from distill.files import write_atomic
from distill.report.items import MEASURES, ClassPredictions, Item, Metric, Note, Row
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.outputs import EvaluatedModel, FrozenTeacher, TrainedStudent
from distill.training.evaluate import Predictions
from distill.training.measures import measures

TENSORS = "predictions.safetensors"
SPLIT = "split.json"


@dataclass(frozen=True)
class Evaluation:
    """The results on one split."""

    split: Split
    predictions: dict[str, Predictions]
    """Name of a model → its predictions; without the teacher if it has other classes."""
    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    """Measured numbers of the student."""


@dataclass(frozen=True)
class Evaluate(Stage[Evaluation]):
    """Evaluates models once, on the test split, or on the validation split if the source has no test split.

    Args:
        models: in the order of the table's rows; a model that is None was not trained and has no row.
        student: one of ``models``, the subject of the run. Its teacher, if it has one, is the last row, and all
            predictions are compared with the teacher's.
    """

    models: tuple[Ref[EvaluatedModel | None], ...]
    student: Ref[TrainedStudent]

    def check(self, context: RunContext) -> Evaluation | None:
        """Read all images of evaluation, since an unreadable one is an error, and predict a few of them."""
        split = self._split(context)
        splits: tuple[Split, ...] = ("val",) if split == "val" else ("val", split)
        for each in splits:
            if context.data.has_split(each) and not context.images_read:
                self._read_all(context, each)
        if context.find(self.student) is None:
            return None
        with trying(f"{self.name}: the predictions on a batch of {split}"):
            predictions = self._predictions(context, split)
        for name, of_model in predictions.items():
            logits = of_model.logits  # those of classes that a teacher does not have are −∞
            if not (logits.isfinite() | logits.isneginf()).all():
                raise StageError(f"{self.name}: the outputs of the {name} on {split} images are not finite")
        return self._evaluation(context, split, predictions)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"data": [context.data.fingerprint(), context.data.settings.model_dump(mode="json")]}

    def run(self, context: RunContext, folder: Path) -> Evaluation:
        split = self._split(context)
        predictions = self._predictions(context, split)
        if is_first_rank():
            tensors = {
                f"{name}/{part}": getattr(of_model, part).contiguous()
                for name, of_model in predictions.items()
                for part in ("logits", "labels", "ids")
            }
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            write_atomic(folder / SPLIT, json.dumps({"split": split, "models": list(predictions)}).encode())
        return self._evaluation(context, split, predictions)

    def load(self, context: RunContext, folder: Path) -> Evaluation:
        about = json.loads((folder / SPLIT).read_text())
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        predictions = {
            name: Predictions(*(tensors[f"{name}/{part}"] for part in ("logits", "labels", "ids")))
            for name in about["models"]
        }
        return self._evaluation(context, about["split"], predictions)

    def report(self, context: RunContext, output: Evaluation) -> Iterable[Item]:
        yield from output.rows
        yield from output.metrics
        if output.split == "val":
            yield Note(text="the source has no test split: the table is of the validation split")
        if classes := tuple(context.data.classes):
            labels = next(iter(output.predictions.values())).labels
            predictions = {name: of_model.classes for name, of_model in output.predictions.items()}
            yield ClassPredictions(classes=classes, labels=labels, predictions=predictions)  # type: ignore[arg-type]

    def _read_all(self, context: RunContext, split: Split) -> None:
        """Read all images of a split. Raises ``DataError`` for one that cannot be read."""
        student = context.find(self.student)
        spec = None if student is None else student.student.input
        loader = context.data.eval_loader(split, shared=False, spec=spec)
        try:
            with context.waiting(f"reading {len(context.data.subset(split))} images of {split}"):
                for _ in loader:
                    context.stop.raise_if_received()
        finally:
            loader.close()

    def _split(self, context: RunContext) -> Split:
        return "test" if context.data.has_split("test") else "val"

    def _predictions(self, context: RunContext, split: Split) -> dict[str, Predictions]:
        student = context.get(self.student)
        predictions = self._predict_models(context, split)
        teacher = student.teacher
        if teacher is not None and teacher.has_classes(student.student.shapes.classes):
            predictions["teacher"] = FrozenTeacher("teacher", "", teacher).predict(context, split)
        return predictions

    def _predict_models(self, context: RunContext, split: Split) -> dict[str, Predictions]:
        return {model.name: model.predict(context, split) for model in self._models(context)}

    def _models(self, context: RunContext) -> list[EvaluatedModel]:
        return [model for ref in self.models if (model := context.find(ref)) is not None]

    def _evaluation(self, context: RunContext, split: Split, predictions: dict[str, Predictions]) -> Evaluation:
        models = self._models(context)
        student = context.get(self.student)
        if student.teacher is not None:
            models.append(FrozenTeacher("teacher", " + ".join(student.teacher.origins), student.teacher))
        of_teacher = predictions.get("teacher")
        rows = []
        for model in models:
            measured: dict[str, Any] = {}
            if (own := predictions.get(model.name)) is not None:
                measured["accuracy"] = own.accuracy()
                measured["measures"] = measures(own)
                if of_teacher is not None and own is not of_teacher:
                    measured["agreement"] = own.agreement(of_teacher)
            rows.append(model.row().model_copy(update=measured))
        row = next(row for row in rows if row.name == student.name)
        metrics = [
            Metric(name=f"{split} {MEASURES[name]}", seed=context.seed, **estimate.model_dump())
            for name, estimate in row.measures.items()
        ]
        if row.agreement is not None:
            metrics.append(Metric(name=f"{split} agreement with the teacher", value=row.agreement, seed=context.seed))
        return Evaluation(split, predictions, tuple(rows), tuple(metrics))
