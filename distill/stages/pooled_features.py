"""Pooled features of the images of some splits, by a pretrained network or by a trained student."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from distill.data.base import Split
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.files import write_atomic
from distill.models.fingerprint import fingerprint
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import loader_of, predict_pooled
from distill.run.stage import Ref, Stage
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import TrainedStudent, pretrained_networks
from distill.training.evaluate import Predictions

TENSORS, ABOUT = "features.safetensors", "features.json"
PARTS = ("logits", "labels", "ids")
READ = {"fit", "channels", "depth", "val_fraction", "labels_per_class", "label_seed"}
"""Settings of the data that the images of a split, their labels or the evaluation view depend on."""


@dataclass(frozen=True)
class SplitFeatures:
    """Features of the images of some splits.

    Args:
        splits: split → features [N, D] in the place of logits, with labels and ids, in the order of the ids.
        seconds: wall time of computing them.
    """

    splits: Mapping[Split, Predictions]
    seconds: float


@dataclass(frozen=True)
class PooledFeatures(Stage[SplitFeatures]):
    """Computes the pooled features of the images of some splits, each once, in evaluation mode and its view.

    Features of a pretrained network are shared by all runs of an output folder that have the same weights and images:
    ``OUTPUT/features/DIGEST``.

    Args:
        splits: of the data, each of which it has.
        network: a pretrained network; it takes this or ``student``.
        student: a trained student, with its deltas.
        labeled: of train, only the images with a visible label.
        optional: further splits, those of them that the data has.
        new_head: whether the network gets a new classifier of the data's classes, as a student does. It makes a
            difference for random weights alone, whose numbers depend on the size of the classifier.
    """

    splits: tuple[Split, ...]
    network: NetworkSettings | None = None
    student: Ref[TrainedStudent] | None = None
    labeled: bool = False
    optional: tuple[Split, ...] = ()
    new_head: bool = False

    def __post_init__(self) -> None:
        if (self.network is None) == (self.student is None):
            raise TypeError(f"{self.name}: features are of a network or of a student")

    def store(self, context: RunContext, digest: str) -> Path | None:
        return feature_store(context, digest) if self.student is None else None

    def check_files(self) -> None:
        if self.network is not None:
            check_file(self.network, self.name)

    def check(self, context: RunContext) -> SplitFeatures | None:
        """The features of a few images of each split; None if there is no student to compute them."""
        for split in self.splits:
            context.data.subset(split)  # raises DataError if the data has no such split
        if self.student is not None and context.find(self.student) is None:
            return None
        with trying(f"{self.name}: the pooled features"):
            return compute_features(context, self._network(context), self._splits(context), self.labeled)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        own: dict[str, Any] = {}
        if self.network is not None:
            own = {"network": self.network.model_dump(mode="json"), "weights": weights_of(self.network, context.seed)}
        settings = context.data.settings.model_dump(mode="json", include=READ)
        data = [context.data.fingerprint(), settings]
        return {**own, "splits": self._splits(context), "labeled": self.labeled, "data": data}

    def run(self, context: RunContext, folder: Path) -> SplitFeatures:
        with context.waiting(f"{self.name}: computing pooled features"):
            made = compute_features(context, self._network(context), self._splits(context), self.labeled)
        save_features(made, folder)
        return made

    def load(self, context: RunContext, folder: Path) -> SplitFeatures:
        return load_features(folder)

    def _splits(self, context: RunContext) -> tuple[Split, ...]:
        return self.splits + tuple(split for split in self.optional if context.data.has_split(split))

    def _network(self, context: RunContext) -> Network:
        if self.student is not None:
            return context.get(self.student).student.network
        assert self.network is not None
        classes = len(context.data.classes) if self.new_head else None
        return pretrained_networks([self.network], context.seed, classes)[0]


def weights_of(network: NetworkSettings, seed: int) -> str:
    """SHA-256 of a pretrained network's weights without its classifier: its file may hold others later."""
    model = pretrained_networks([network], seed)[0].model
    return fingerprint(backbone_state(model, classifier_names(model))).sha256


def compute_features(
    context: RunContext, network: Network, splits: Sequence[Split], labeled: bool = False
) -> SplitFeatures:
    """The pooled features of some splits, each image once.

    Args:
        context: of the run, for its data and device.
        network: on any device, to which it is returned.
        splits: of the context's data.
        labeled: of train, only the images with a visible label.

    Returns:
        The features.
    """
    begun, made = time.perf_counter(), {}
    for split in splits:
        made[split] = predict_pooled(context, network, loader_of(context, network.input, split, labeled))
    return SplitFeatures(made, time.perf_counter() - begun)


def save_features(features: SplitFeatures, folder: Path) -> None:
    """Write features into a folder, on the first rank; :func:`load_features` reads them."""
    if is_first_rank():
        tensors = {
            f"{split}/{part}": getattr(own, part).contiguous()
            for split, own in features.splits.items()
            for part in PARTS
        }
        write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
        about = {"splits": list(features.splits), "seconds": features.seconds}
        write_atomic(folder / ABOUT, json.dumps(about).encode())


def load_features(folder: Path) -> SplitFeatures:
    """The features that :func:`save_features` wrote into a folder."""
    tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
    about = json.loads((folder / ABOUT).read_text())
    splits = {split: Predictions(*(tensors[f"{split}/{part}"] for part in PARTS)) for split in about["splits"]}
    return SplitFeatures(splits, about["seconds"])


def feature_store(context: RunContext, digest: str) -> Path:
    """The folder of features that all runs of an output folder share."""
    return context.root / "features" / digest
