"""Pooled features of a task's images, from which closed-form heads are fitted and tasks inferred."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.continual.errors import ContinualError
from distill.continual.learned import LearnedTask
from distill.continual.task import Task, splits_of
from distill.data.base import Split
from distill.models.network import Network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.run.predict import predict_pooled
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.outputs import pretrained_networks
from distill.stages.pooled_features import compute_features, feature_store, load_features, save_features
from distill.training.evaluate import Predictions


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
        return feature_store(context, digest) if self.shared and self.learned is None else None

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
        within = self._within(context)
        made = compute_features(within, self._network(context), splits_of(within.data), labeled=True)
        save_features(made, folder)
        return TaskFeatures(self.task, made.splits, made.seconds)

    def load(self, context: RunContext, folder: Path) -> TaskFeatures:
        made = load_features(folder)
        return TaskFeatures(self.task, made.splits, made.seconds)

    def _within(self, context: RunContext) -> RunContext:
        return replace(context, data=self.task.data(context.data, self.task.classes, context.seed))

    def _network(self, context: RunContext) -> Network:
        if self.learned is None:
            return pretrained_networks([self.network], context.seed)[0]
        learned = context.get(self.learned)
        assert learned.features is not None
        return learned.features.load()
