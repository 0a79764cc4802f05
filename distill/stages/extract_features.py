"""Pooled features of a task's images, from which closed-form heads are fitted and tasks inferred."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch

from distill.continual.errors import ContinualError
from distill.continual.learned import LearnedTask
from distill.continual.task import Task, splits_of
from distill.data.base import Split
from distill.files import write_atomic
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.outputs import pretrained_networks
from distill.training.evaluate import Predictions

TENSORS, ABOUT = "features.safetensors", "features.json"


@dataclass(frozen=True)
class TaskFeatures:
    """Features of a task's images.

    Args:
        task: of the stream.
        splits: split → features [N, D] in the place of logits, with labels that are indices into ``task.classes``.
        seconds: wall time.
    """

    task: Task
    splits: Mapping[Split, Predictions]
    seconds: float

    @property
    def evaluation(self) -> Predictions:
        """Of the images that are evaluated: test, or val without a test split."""
        return self.splits["test"] if "test" in self.splits else self.splits["val"]

    @property
    def held_out(self) -> Predictions | None:
        """Of val, which hyperparameters are chosen by; None without one, and where val is what is evaluated."""
        return self.splits.get("val") if "test" in self.splits else None


@dataclass(frozen=True)
class ExtractFeatures(Stage[TaskFeatures]):
    """Computes the pooled features of a task's images, each once, in evaluation mode and without augmentation.

    Args:
        task: of the stream.
        network: the frozen backbone.
        learned: the learner whose adapted network gives the features instead; None: the backbone.
        shared: whether runs of the same output folder share the features of the backbone.
    """

    task: Task
    network: NetworkSettings
    learned: Ref[LearnedTask] | None = None
    shared: bool = False

    def store(self, context: RunContext, digest: str) -> Path | None:
        return context.root / "features" / digest if self.shared and self.learned is None else None

    def check(self, context: RunContext) -> None:
        within = self._within(context)
        if not within.data.labeled_count:
            raise ContinualError(
                f"heads, inference and controls.heads read features of labeled images, and the task {self.task.name!r} "
                "has none: use heads: [], inference: [] and controls: {heads: false}"
            )
        if self.learned is None:
            network = self._network(context)
            with trying(f"{self.name}: the pooled features of {self.network.model}"):
                predict_pooled(within, network, within.labeled_loader(network.input))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        data = self._within(context).data
        return {
            "task": self.task.name,
            "network": self.network.model_dump(mode="json"),
            "data": [data.fingerprint(), data.settings.model_dump(mode="json")],
        }

    def run(self, context: RunContext, folder: Path) -> TaskFeatures:
        begun = time.perf_counter()
        within, network = self._within(context), self._network(context)
        splits = {}
        for split in splits_of(within.data):
            train = split == "train"
            loader = within.labeled_loader(network.input) if train else within.loader(split, network.input)
            splits[split] = predict_pooled(within, network, loader)
        seconds = time.perf_counter() - begun
        if is_first_rank():
            tensors = {
                f"{split}/{part}": getattr(of_split, part).contiguous()
                for split, of_split in splits.items()
                for part in ("logits", "labels", "ids")
            }
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            write_atomic(folder / ABOUT, json.dumps({"splits": list(splits), "seconds": seconds}).encode())
        return TaskFeatures(self.task, splits, seconds)

    def load(self, context: RunContext, folder: Path) -> TaskFeatures:
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        about = json.loads((folder / ABOUT).read_text())
        splits = {
            split: Predictions(*(tensors[f"{split}/{part}"] for part in ("logits", "labels", "ids")))
            for split in about["splits"]
        }
        return TaskFeatures(self.task, splits, about["seconds"])

    def _within(self, context: RunContext) -> RunContext:
        return replace(context, data=self.task.data(context.data, self.task.classes, context.seed))

    def _network(self, context: RunContext) -> Network:
        if self.learned is None:
            return pretrained_networks([self.network], context.seed)[0]
        learned = context.get(self.learned)
        assert learned.features is not None
        return learned.features.load()
