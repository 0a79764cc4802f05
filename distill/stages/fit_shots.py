"""Few-shot heads on cached features, and the student whose classifier one of them becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
from distill.transfer.few_shot.base import FewShotError, FewShotHead, shown_names

TENSORS = "head.safetensors"
ROUNDING = 1e-3
"""Largest difference between folded and unfolded logits, relative to their size."""
NOTHING_TRAINED = FitSummary(0, 0, 0.0, 0.0, {}, 0, -1)


@dataclass(frozen=True)
class FewShotModel(EvaluatedModel):
    """A fitted head, and the features of the images that it is evaluated on.

    Args:
        head: its weights.
        features: of the images.
        unsolved: 1 if the head's solver stopped before it converged, else 0.
    """

    head: LinearHead
    features: SplitFeatures
    unsolved: int = field(default=0, kw_only=True)

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
        if not data.classes:
            where = f"source {data.settings.source.type!r}"
            raise FewShotError(f"no training image has a label ({where}); a head needs one or more of each class")
        given = data.subset("train").labels
        labels = torch.from_numpy(given[given != UNLABELED])
        counts = labels.bincount(minlength=len(data.classes)).tolist()
        if missing := [name for name, count in zip(data.classes, counts) if not count]:
            limit = data.settings.labels_per_class
            hint = "" if limit is None else f" (data.labels_per_class: {limit})"
            raise FewShotError(
                f"no labeled training image of {shown_names(missing)}{hint}; a head needs one or more of each class"
            )
        known, texts = context.find(self.features), read_texts(self.head)
        width = 4 if known is None else known.splits["train"].logits.shape[1]
        random = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(0))
        with trying(f"{self.name}: the head on random features"):
            head = self._head.fit(random, labels, data.classes, texts)
        return None if known is None else self._model(context, head, 0)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        classes, texts = list(context.data.classes), texts_key([self.head])
        return {"head": self.head.model_dump(mode="json"), "classes": classes, "texts": texts}

    def run(self, context: RunContext, folder: Path) -> FewShotModel:
        train = context.get(self.features).splits["train"]
        solver = self._head
        head = solver.fit(train.logits, train.labels, context.data.classes, read_texts(self.head))
        if is_first_rank():
            tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
            tensors["unsolved"] = torch.tensor(solver.unsolved)
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        return self._model(context, head, solver.unsolved)

    def load(self, context: RunContext, folder: Path) -> FewShotModel:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        head = LinearHead(context.data.classes, tensors["weight"], tensors["bias"])
        return self._model(context, head, int(tensors["unsolved"]))

    def report(self, context: RunContext, output: FewShotModel) -> Iterable[Item]:
        if output.unsolved:
            yield Note(text=f"{output.name}: the solver stopped at its limit of steps before it converged")

    @property
    def _head(self) -> FewShotHead:
        return self.head.component(self.head)  # type: ignore[misc, return-value]

    def _model(self, context: RunContext, head: LinearHead, unsolved: int) -> FewShotModel:
        features = context.get(self.features)
        counts = features.splits["train"].labels.bincount(minlength=len(head.classes))
        few, most = int(counts.min()), int(counts.max())
        shots = f"{few}" if few == most else f"{few} to {most}"
        what = f"{int(counts.sum())} images, {shots} of each of {len(head.classes)} classes"
        return FewShotModel(self.head.shown, what, head, features, unsolved=unsolved)


@dataclass(frozen=True)
class FoldHead(Stage[TrainedStudent]):
    """The student: network and deltas as they are, with a fitted head as its classifier, a plain linear layer.

    Args:
        student: its settings.
        head: that becomes the classifier.
        source: the student whose deltas it has; None: it has none.
        labeled: whether the features of train are of the images with a visible label alone.
    """

    student: StudentSettings
    head: Ref[FewShotModel]
    source: Ref[TrainedStudent] | None = None
    labeled: bool = True

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
        folded = predict_student(context, output.student, split, self.labeled)
        yield folded_equals(folded, model.predict(context, split))

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
        The check. It passes if no logit differs by more than ``ROUNDING`` times the size of the logits, and every image
        has the same class, unless its two largest logits are closer to each other than that. The size of an image's
        logits is the largest distance from their mean, which an offset of all classes does not change; it is the median
        over images.
    """
    name = "folded head = head on features"
    if not torch.equal(folded.ids, unfolded.ids):
        detail = f"{len(folded.ids)} images are predicted, and the head has features of {len(unfolded.ids)} others"
        return Check(name=name, passed=False, detail=detail, of="head")
    logits_NK = unfolded.logits.double()
    size = (logits_NK - logits_NK.mean(1, keepdim=True)).abs().amax(1).median().clamp_min(1e-12)
    apart = ((folded.logits - logits_NK).abs().max() / size).item()
    same_N = folded.classes == unfolded.classes
    first_two_N2 = logits_NK.topk(2, dim=1).values
    tied_N = first_two_N2[:, 0] - first_two_N2[:, 1] <= ROUNDING * size
    detail = f"relative difference {apart:.1e}, top-1 equal on {int(same_N.sum())} of {len(same_N)} images"
    return Check(name=name, passed=apart < ROUNDING and bool((same_N | tied_N).all()), detail=detail, of="head")


@dataclass(frozen=True)
class EvaluateShots(Evaluate):
    """Evaluates the heads and the student on test; without test and validation images, there are no accuracies.

    Args:
        labeled: whether the features of train are of the images with a visible label alone.
    """

    labeled: bool = True

    def _split(self, context: RunContext) -> Split:
        splits: tuple[Split, ...] = ("test", "val")
        return next((split for split in splits if context.data.has_split(split)), "train")

    def report(self, context: RunContext, output: Evaluation) -> Iterable[Item]:
        yield from super().report(context, output)
        if output.split == "train":
            yield Note(text="there are no test images (data.source test_fraction, or a test split), so no accuracies")

    def _predict_models(self, context: RunContext, split: Split) -> dict[str, Predictions]:
        if split != "train":
            return super()._predict_models(context, split)
        made = {}
        for model in self._models(context):
            if isinstance(model, TrainedStudent):
                own = predict_student(context, model.student, split, self.labeled)
            else:
                own = model.predict(context, split)
            # The accuracy on the images that a head is fitted to is not a measure.
            made[model.name] = Predictions(own.logits, torch.full_like(own.labels, UNLABELED), own.ids)
        return made


def texts_key(heads: Sequence[FewShotHead.Settings]) -> dict[str, str]:
    """What the key of a stage has of text embeddings: name of a head that reads a file → hash of its tensors."""
    read = {head.shown: read_texts(head) for head in heads}
    return {name: fingerprint(texts).sha256 for name, texts in read.items() if texts is not None}


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
