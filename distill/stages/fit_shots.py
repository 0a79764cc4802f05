"""Few-shot heads on cached features, and the student whose classifier one of them becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distill.continual.heads.linear import LinearHead
from distill.data.base import UNLABELED, Split
from distill.deltas.sites import classifier_names
from distill.files import write_atomic
from distill.models.fingerprint import fingerprint
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.report.items import Check, Item, Note, Row
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_student
from distill.run.prepare import StudentSpec, finished, load_trained, prepare_from
from distill.run.stage import Ref, Stage, StageError
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.evaluate import Evaluate, Evaluation
from distill.stages.outputs import EvaluatedModel, TrainedStudent, check_classes
from distill.stages.pooled_features import SplitFeatures
from distill.training.evaluate import Predictions
from distill.training.fit import FitSummary, save_result
from distill.transfer.few_shot.base import FewShotError, FewShotHead

TENSORS = "head.safetensors"
NOTHING_TRAINED = FitSummary(0, 0, 0.0, 0.0, {}, 0, -1)


@dataclass(frozen=True)
class FewShotModel(EvaluatedModel):
    """A fitted head, and the features of the images that it is evaluated on."""

    head: LinearHead
    features: SplitFeatures

    def predict(self, context: RunContext, split: Split) -> Predictions:
        own = self.features.splits[split]
        return Predictions(self.head.logits(own.logits), own.labels.clone(), own.ids.clone())

    def row(self) -> Row:
        count = self.head.weight.numel() + self.head.bias.numel()
        return Row(name=self.name, what=self.what, trained=count, bytes=4 * count)


@dataclass(frozen=True)
class FitShots(Stage[FewShotModel]):
    """Fits a head on the labeled training images of all classes, whatever their numbers.

    Args:
        head: its settings.
        features: of train, and of what is evaluated.
    """

    head: FewShotHead.Settings
    features: Ref[SplitFeatures]

    def check_files(self) -> None:
        read_texts(self.head)

    def check(self, context: RunContext) -> FewShotModel | None:
        """Fit the head to as many random features as there are labels of each class."""
        data = context.data
        check_classes(data)
        given = data.subset("train").labels
        labels = torch.from_numpy(given[given != UNLABELED])
        known, texts = context.find(self.features), read_texts(self.head)
        width = 4 if known is None else known.splits["train"].logits.shape[1]
        random = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(0))
        with trying(f"{self.name}: the head on random features"):
            head = self._head.fit(random, labels, data.classes, texts)
        return None if known is None else self._model(context, head)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        texts = read_texts(self.head)
        digest = None if texts is None else fingerprint(texts).sha256
        return {"head": self.head.model_dump(mode="json"), "classes": list(context.data.classes), "texts": digest}

    def run(self, context: RunContext, folder: Path) -> FewShotModel:
        train = context.get(self.features).splits["train"]
        head = self._head.fit(train.logits, train.labels, context.data.classes, read_texts(self.head))
        if is_first_rank():
            tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        return self._model(context, head)

    def load(self, context: RunContext, folder: Path) -> FewShotModel:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        return self._model(context, LinearHead(context.data.classes, tensors["weight"], tensors["bias"]))

    @property
    def _head(self) -> FewShotHead:
        return self.head.component(self.head)  # type: ignore[misc, return-value]

    def _model(self, context: RunContext, head: LinearHead) -> FewShotModel:
        features = context.get(self.features)
        counts = features.splits["train"].labels.bincount(minlength=len(head.classes))
        few, most = int(counts.min()), int(counts.max())
        shots = f"{few}" if few == most else f"{few} to {most}"
        what = f"{int(counts.sum())} images, {shots} of each of {len(head.classes)} classes"
        return FewShotModel(self.head.shown, what, head, features)


@dataclass(frozen=True)
class FoldHead(Stage[TrainedStudent]):
    """The student: network and deltas as they are, with a fitted head as its classifier, a plain linear layer.

    Args:
        student: its settings.
        head: that becomes the classifier.
        source: the student whose deltas it has; None: it has none.
    """

    student: StudentSettings
    head: Ref[FewShotModel]
    source: Ref[TrainedStudent] | None = None

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")

    def check(self, context: RunContext) -> TrainedStudent | None:
        """Fold the head of the checks."""
        head, source = context.find(self.head), None if self.source is None else context.find(self.source)
        if head is None or (self.source is not None and source is None):
            return None
        assert context.trial is not None
        with trying(f"{self.name}: building the student"):
            student = self._built(context, source, context.trial.folder / self.name)
        self._fold(student, head.head)
        return self._trained(context, student, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"student": self.student.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        student = self._built(context, None if self.source is None else context.get(self.source), folder)
        self._fold(student, context.get(self.head).head)
        if is_first_rank():
            save_result(student, folder)
        return self._trained(context, finished(self._spec(context), student), folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        return self._trained(context, load_trained(self._spec(context), folder), folder)

    def report(self, context: RunContext, output: TrainedStudent) -> Iterable[Item]:
        model = context.get(self.head)
        splits: tuple[Split, ...] = ("test", "val", "train")
        split = next(own for own in splits if own in model.features.splits)
        yield folded_equals(predict_student(context, output.student, split), model.predict(context, split))

    def _spec(self, context: RunContext) -> StudentSpec:
        return StudentSpec(self.student, context.seed, len(context.data.classes), frozenset({"logits", "pooled"}))

    def _built(self, context: RunContext, source: TrainedStudent | None, folder: Path) -> Student:
        spec, inits = self._spec(context), [] if source is None else source.student.inits()
        head: dict[str, Tensor] = {}
        return prepare_from(spec, inits, head, folder) if inits else spec.build()

    def _fold(self, student: Student, head: LinearHead) -> None:
        if len(classifier_names(student.model)) != 1:
            raise StageError(f"{self.name}: {student.network.architecture} has not one classifier to fold a head into")
        head.fold(student.model)

    def _trained(self, context: RunContext, student: Student, folder: Path) -> TrainedStudent:
        head = context.get(self.head)
        source = None if self.source is None else context.get(self.source)
        what = f"{head.name}, folded: {head.what}" + (f"; {source.what}" if source is not None else "")
        fit = NOTHING_TRAINED if source is None else source.fit
        return TrainedStudent("student", what, student, None, self._spec(context), fit, folder)


def folded_equals(folded: Predictions, unfolded: Predictions) -> Check:
    """Whether a folded head predicts what the head on cached features does, for every image.

    Args:
        folded: logits of the student.
        unfolded: logits of the head on features, of the same images.

    Returns:
        The check; it passes if the largest difference is rounding error. Two classes with equal logits may swap.
    """
    largest = unfolded.logits.abs().max().clamp_min(1e-12)
    apart = ((folded.logits - unfolded.logits).abs().max() / largest).item()
    same, count = int((folded.classes == unfolded.classes).sum()), len(folded.ids)
    detail = f"relative difference {apart:.1e}, top-1 equal on {same} of {count} images"
    passed = bool(torch.equal(folded.ids, unfolded.ids)) and apart < 1e-3
    return Check(name="folded head = head on features", passed=passed, detail=detail, of="head")


@dataclass(frozen=True)
class EvaluateShots(Evaluate):
    """Evaluates the heads and the student on test; without test and validation images, there are no accuracies."""

    def _split(self, context: RunContext) -> Split:
        splits: tuple[Split, ...] = ("test", "val")
        return next((split for split in splits if context.data.has_split(split)), "train")

    def report(self, context: RunContext, output: Evaluation) -> Iterable[Item]:
        yield from super().report(context, output)
        if output.split == "train":
            yield Note(text="there are no test images (data.source test_fraction, or a test split), so no accuracies")

    def _predict_models(self, context: RunContext, split: Split) -> dict[str, Predictions]:
        made = super()._predict_models(context, split)
        if split != "train":
            return made
        # The accuracy on the images that a head is fitted to says nothing.
        return {
            name: Predictions(own.logits, torch.full_like(own.labels, UNLABELED), own.ids) for name, own in made.items()
        }


def read_texts(settings: FewShotHead.Settings) -> dict[str, Tensor] | None:
    """Class → text embedding [D] of a head's key ``text``; None without one.

    Raises:
        FewShotError: the file cannot be read.
    """
    path: Path | None = getattr(settings, "text", None)
    if path is None:
        return None
    try:
        return safetensors.torch.load(path.read_bytes())
    except Exception as error:  # of the file system, or of safetensors
        raise FewShotError(f"{settings.type}.text: {path} cannot be read: {error}") from error
