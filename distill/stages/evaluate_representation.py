"""How good a learner's features are after a task: k nearest neighbors and a linear classifier on all tasks' images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distill.continual.learned import LearnedTask
from distill.continual.scores import Accuracy, Setting, TaskScores, score
from distill.continual.task import Task, evaluation_split, keyed_seed
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.files import write_atomic
from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.evaluate_task import SCORES, TaskEvaluation
from distill.training.evaluate import Predictions
from distill.training.knn import predict_knn
from distill.training.probe import fit_probe

SETTING: Setting = "representation"


@dataclass(frozen=True)
class EvaluateRepresentation(Stage[TaskEvaluation]):
    """Scores the frozen, pooled features of a learner after a task on the test images of all tasks, also future ones.

    Two classifiers of all classes of the stream are fitted on the features of the training images of all tasks:
    weighted k nearest neighbors (:mod:`distill.training.knn`) and logistic regression (:mod:`distill.training.probe`,
    its penalty chosen on val, or on the training images where val is evaluated or missing). This is the protocol of
    CaSSLe. Labels, and images of other tasks, are read here alone; nothing that is fitted here is kept or learned from.
    The network is in evaluation mode, and images are not augmented.

    Rows of the tables are called ``MODEL, knn`` and ``MODEL, linear``.

    Paper: Fini et al., Self-Supervised Models are Continual Learners, CVPR 2022, arXiv 2112.04215. Deviation: it trains
    the linear classifier by SGD on augmented images.

    Args:
        model: name of the learner in the tables.
        tasks: all tasks of the stream, in their order.
        after: number of tasks that are learned; 0: the untrained start.
        network: of the student, for the untrained start.
        learned: the learner after the task; None: the untrained start.
    """

    model: str
    tasks: tuple[Task, ...]
    after: int
    network: NetworkSettings
    learned: Ref[LearnedTask] | None = None

    def check(self, context: RunContext) -> None:
        if self.learned is not None:
            return
        data = self._data(context, self.tasks[0])
        if not data.labeled_count or len(self._classes) < 2:
            text = "setting: representation is evaluated with labeled images of two classes or more"
            raise StageError(f"{self.name}: {text}, and there are none")
        within, network = replace(context, data=data), self._network(context)
        with trying(f"{self.name}: the pooled features of {self.network.model}"):
            predict_pooled(within, network, within.labeled_loader(network.input))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "model": self.model,
            "after": self.after,
            "tasks": [task.name for task in self.tasks],
            "network": self.network.model_dump(mode="json") if self.learned is None else None,
            "data": [context.data.fingerprint(), context.data.settings.model_dump(mode="json")],
        }

    def run(self, context: RunContext, folder: Path) -> TaskEvaluation:
        network = self._network(context)
        evaluated = evaluation_split(context.data)
        with_val = evaluated == "test" and context.data.has_split("val")
        train = self._features(context, network, "train")
        val = self._features(context, network, "val") if with_val else {}
        test = self._features(context, network, evaluated)
        scores = self._scores(_together(train.values()), _together(val.values()) if val else None, test)
        learned = context.get(self.learned) if self.learned else None
        parts = learned.parts if learned else ()
        served, kept = sum(part.served for part in parts), sum(part.kept for part in parts)
        names = list(scores)
        result = TaskScores(
            task=self.tasks[max(0, self.after - 1)].name,
            scores=scores,
            served=dict.fromkeys(names, served),
            kept=dict.fromkeys(names, kept),
            peak=dict.fromkeys(names, max(learned.peak if learned else 0, kept)),
            backbone=learned.backbone if learned else 0,
            seconds=dict.fromkeys(names, learned.seconds if learned else 0.0),
        )
        if is_first_rank():
            write_atomic(folder / SCORES, result.model_dump_json(indent=2).encode())
        return TaskEvaluation({}, result)

    def load(self, context: RunContext, folder: Path) -> TaskEvaluation:
        return TaskEvaluation({}, TaskScores.model_validate(json.loads((folder / SCORES).read_text())))

    @property
    def _classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for task in self.tasks for name in task.classes))

    def _data(self, context: RunContext, task: Task) -> ExperimentData:
        return task.data(context.data, self._classes, context.seed)

    def _network(self, context: RunContext) -> Network:
        if self.learned is not None:
            return context.get(self.learned).newest.load()
        first = self.tasks[0]
        torch.manual_seed(keyed_seed(context.seed, first.name))  # as the student of the first task is made
        return create_network(self.network, len(first.classes))

    def _features(self, context: RunContext, network: Network, split: Split) -> dict[str, Predictions]:
        """Task → pooled features of its images of a split, with labels that count all classes."""
        features = {}
        for task in self.tasks:
            if split not in task.indices:
                continue
            within = replace(context, data=self._data(context, task))
            train = split == "train"
            loader = within.labeled_loader(network.input) if train else within.loader(split, network.input)
            features[task.name] = predict_pooled(within, network, loader)
        return features

    def _scores(
        self, train: Predictions, held_out: Predictions | None, test: Mapping[str, Predictions]
    ) -> dict[str, dict[Setting, dict[str, Accuracy]]]:
        classes = len(self._classes)
        probe = fit_probe(train, train if held_out is None else held_out, classes)
        of_knn = {name: score(predict_knn(train, own, classes)) for name, own in test.items()}
        of_linear = {name: score(probe.predict(own)) for name, own in test.items()}
        return {f"{self.model}, knn": {SETTING: of_knn}, f"{self.model}, linear": {SETTING: of_linear}}


def _together(parts: Iterable[Predictions]) -> Predictions:
    columns = zip(*((part.logits, part.labels, part.ids) for part in parts), strict=True)
    return Predictions(*(torch.cat(column) for column in columns))
