"""Heads from the texts of classes: a linear map from cached features to text embeddings, folded with the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from distill.continual.heads.linear import LinearHead
from distill.data.base import Split
from distill.files import write_atomic
from distill.models.class_names import described_classes
from distill.models.fingerprint import fingerprint
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.models.text_map import teacher_texts
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.run.teacher import text_store
from distill.run.trial import trying
from distill.stages.embed_classes import EmbeddedClasses
from distill.stages.fit_shots import FewShotModel
from distill.stages.outputs import EvaluatedModel, pretrained_networks
from distill.stages.pooled_features import SplitFeatures
from distill.text.classes import embed_classes
from distill.text.settings import TextSettings
from distill.training.evaluate import Predictions
from distill.transfer.text_head import (
    SCALE,
    TextMap,
    conse,
    fit_to_embeddings,
    fit_to_labels,
    of_projection,
    unseen_classes,
)

TENSORS, TEACHER = "map.safetensors", "teacher_texts.safetensors"
ROWS = {
    "names": "names",
    "definitions": "definitions",
    "both": "names + definitions",
    "shuffled": "shuffled definitions",
}
"""Texts that a head is made from → its row."""


@dataclass(frozen=True)
class TextHead(FewShotModel):
    """A head from texts, with the map that gives it, so that a class can be added."""

    map: TextMap


@dataclass(frozen=True)
class ConseModel(EvaluatedModel):
    """ConSE, which no linear layer holds: cosines of the mean text of ImageNet's likeliest classes."""

    features: SplitFeatures
    classifier: tuple[Tensor, Tensor]
    teacher_TE: Tensor
    texts_KE: Tensor
    top: int

    def predict(self, context: RunContext, split: Split) -> Predictions:
        own = self.features.splits[split]
        weight, bias = self.classifier
        embedded = conse(own.logits @ weight.T + bias, self.teacher_TE, self.top)
        return Predictions(SCALE * embedded @ self.texts_KE.T, own.labels.clone(), own.ids.clone())


@dataclass(frozen=True)
class FitTextHead(Stage[TextHead]):
    """Fits the map from features to texts, and makes the head.

    Args:
        settings: of the texts.
        network: whose features they are; its own classifier is read by ``conse`` and ``direct``.
        texts: of the classes.
        features: of train, and of what is evaluated.
        variant: which texts.
        method: ``ridge``, ``conse`` or ``direct``, see :class:`distill.experiments.zero_shot.ZeroShotExperiment`.
        penalty: λ of the map.
        top: of ConSE.
        unseen: classes whose labels are not read.
    """

    settings: TextSettings
    network: NetworkSettings
    texts: Ref[EmbeddedClasses]
    features: Ref[SplitFeatures]
    variant: str
    method: str
    penalty: float
    top: int
    unseen: tuple[str, ...] | int

    def check(self, context: RunContext) -> TextHead | None:
        """Fit the map to the features of the trial, and to random ones of each seen class."""
        texts, features = context.find(self.texts), context.find(self.features)
        with trying(f"{self.name}: choosing the classes"):
            unseen = unseen_classes(self.unseen, context.data.classes, context.seed)
        if self.method == "ridge":
            labels = torch.from_numpy(context.data.subset("train").labels)
            seen = set(labels[labels >= 0].tolist()) - set(unseen)
            if len(seen) < 2:
                raise StageError(
                    f"{self.name}: ridge is fitted to two seen classes with labels or more, not {len(seen)}"
                )
        if texts is None or features is None:
            return None
        with trying(f"{self.name}: the head"):
            return self._made(context, self._fitted(context, texts, features), texts, features)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "variant": self.variant,
            "method": self.method,
            "penalty": self.penalty,
            "top": self.top,
            "unseen": self.unseen,
            "texts": self.settings.model_dump(mode="json"),
            "network": self.network.model_dump(mode="json"),
            "classifier": None if self.method == "ridge" else classifier_hash(context, self.network, self.name),
        }

    def run(self, context: RunContext, folder: Path) -> TextHead:
        texts, features = context.get(self.texts), context.get(self.features)
        fitted = self._fitted(context, texts, features)
        if is_first_rank():
            tensors = {name: tensor.contiguous() for name, tensor in fitted.tensors().items()}
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        return self._made(context, fitted, texts, features)

    def load(self, context: RunContext, folder: Path) -> TextHead:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        fitted = TextMap(tensors["map"], tensors["mean"], tensors["center"])
        return self._made(context, fitted, context.get(self.texts), context.get(self.features))

    def _fitted(self, context: RunContext, texts: EmbeddedClasses, features: SplitFeatures) -> TextMap:
        texts_KE, train = texts.embeddings[self.variant], features.splits["train"]
        if self.method == "direct":
            weight, bias = own_classifier(self._network(context), self.name)
            if weight.shape[0] != texts_KE.shape[1]:
                raise StageError(
                    f"{self.name}: the classifier of {self.network.model} has {weight.shape[0]} outputs, and the text "
                    f"encoder's embeddings {texts_KE.shape[1]} numbers: it is no projection to them"
                )
            return of_projection(weight, bias)
        if self.method == "conse":
            weight, bias = own_classifier(self._network(context), self.name)
            teacher_TE = self._teacher(context)
            targets_NE = conse(train.logits @ weight.T + bias, teacher_TE, self.top)
            return fit_to_embeddings(train.logits, targets_NE, texts_KE.mean(0), self.penalty)
        unseen = unseen_classes(self.unseen, context.data.classes, context.seed)
        read = (train.labels >= 0) & ~torch.isin(train.labels, torch.tensor(unseen, dtype=torch.long))
        if context.trial is not None and not read.any():
            read = torch.ones_like(read)  # the few images of the trial may all be of unseen classes
        return fit_to_labels(train.logits[read], train.labels[read].clamp(min=0), texts_KE, self.penalty)

    def _teacher(self, context: RunContext) -> Tensor:
        return imagenet_texts(context, self._network(context), self.settings, self.variant, self.name)

    def _network(self, context: RunContext) -> Network:
        return pretrained_networks([self.network], context.seed)[0]

    def _made(self, context: RunContext, fitted: TextMap, texts: EmbeddedClasses, features: SplitFeatures) -> TextHead:
        weight, bias = fitted.head(texts.embeddings[self.variant])
        classes = context.data.classes
        count = 0 if self.method != "ridge" else len(classes) - len(unseen_classes(self.unseen, classes, context.seed))
        what = f"texts of {len(classes)} classes, labels of {count}" if count else f"texts of {len(classes)} classes"
        return TextHead(ROWS[self.variant], what, LinearHead(classes, weight, bias), features, fitted)


@dataclass(frozen=True)
class ApplyConse(Stage[ConseModel]):
    """ConSE as it is, beside the linear head that is fitted to it.

    Args:
        settings: of the texts.
        network: whose classifier is read.
        texts: of the classes.
        features: of what is evaluated.
        variant: which texts.
        top: number of likeliest classes.
    """

    settings: TextSettings
    network: NetworkSettings
    texts: Ref[EmbeddedClasses]
    features: Ref[SplitFeatures]
    variant: str
    top: int

    def check(self, context: RunContext) -> ConseModel | None:
        if context.find(self.texts) is None or context.find(self.features) is None:
            return None
        with trying(f"{self.name}: the texts of the network's classes"):
            return self._made(context, self._teacher(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "variant": self.variant,
            "top": self.top,
            "texts": self.settings.model_dump(mode="json"),
            "network": self.network.model_dump(mode="json"),
            "classifier": classifier_hash(context, self.network, self.name),
        }

    def run(self, context: RunContext, folder: Path) -> ConseModel:
        teacher_TE = self._teacher(context)
        if is_first_rank():
            write_atomic(folder / TEACHER, safetensors.torch.save({"teacher": teacher_TE.contiguous()}))
        return self._made(context, teacher_TE)

    def load(self, context: RunContext, folder: Path) -> ConseModel:
        return self._made(context, safetensors.torch.load((folder / TEACHER).read_bytes())["teacher"])

    def _teacher(self, context: RunContext) -> Tensor:
        network = pretrained_networks([self.network], context.seed)[0]
        return imagenet_texts(context, network, self.settings, self.variant, self.name)

    def _made(self, context: RunContext, teacher_TE: Tensor) -> ConseModel:
        classifier = own_classifier(pretrained_networks([self.network], context.seed)[0], self.name)
        texts_KE = context.get(self.texts).embeddings[self.variant]
        features = context.get(self.features)
        what = f"ConSE as it is, from {self.top} of {len(teacher_TE):,} classes"
        return ConseModel(f"ConSE, {ROWS[self.variant]}", what, features, classifier, teacher_TE, texts_KE, self.top)


def own_classifier(network: Network, name: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a network's classifier.

    Args:
        network: a timm model.
        name: of the stage, for errors.
    """
    classifier = network.model.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise StageError(f"{name}: {network.origin} has no classifier that is one linear layer")
    weight = classifier.weight.detach()
    return weight, weight.new_zeros(len(weight)) if classifier.bias is None else classifier.bias.detach()


def classifier_hash(context: RunContext, network: NetworkSettings, name: str) -> str:
    """SHA-256 of a network's own classifier, which may lie in a file.

    Args:
        context: of the run.
        network: settings.
        name: of the stage, for errors.
    """
    weight, bias = own_classifier(pretrained_networks([network], context.seed)[0], name)
    return fingerprint({"weight": weight, "bias": bias}).sha256


def imagenet_texts(context: RunContext, network: Network, settings: TextSettings, variant: str, name: str) -> Tensor:
    """Embeddings [T, E] of the texts of a network's own classes, with definitions where the classes' texts have some.

    Args:
        context: of the run, for the store of embeddings.
        network: with a classifier of classes that are known by name.
        settings: of the texts.
        variant: of the classes' texts.
        name: of the stage, for errors.
    """
    described = described_classes(network)
    if described is None:
        raise StageError(f"{name}: {network.origin} has no class names, so its classes have no texts; use ridge")
    store = text_store(context)
    texts = teacher_texts(described, settings, network.origin, store)
    return embed_classes(texts, settings, store, "names" if variant == "names" else "definitions")
