"""Nearest mean of exemplars after a task: the classifier of iCaRL, from the images in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from distill.continual.heads.ncm import NearestClassMean
from distill.continual.learned import LearnedTask
from distill.continual.memory.keep import samples_of
from distill.continual.memory.store import Store
from distill.continual.scores import Accuracy, Setting, TaskScores, score
from distill.continual.task import Task
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.data.split import Subset
from distill.files import write_atomic
from distill.models.network import Network
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import predict_pooled
from distill.run.stage import Ref, Stage
from distill.stages.evaluate_task import TaskEvaluation
from distill.training.evaluate import Predictions

SCORES = "scores.json"


@dataclass(frozen=True)
class EvaluateExemplars(Stage[TaskEvaluation]):
    """Classifies the test images of all tasks so far by the nearest mean of the exemplars of a class.

    Features are those of the network after the task, normalized to length 1, as are the means. iCaRL averages the
    features of an exemplar and of its mirror image; here each is seen once.

    Paper: Rebuffi et al., iCaRL, arXiv 1611.07725.

    Args:
        model: name of the learner in the tables.
        tasks: all tasks so far.
        learned: the learner after the last of them, with a memory.
        setting: ``class``, or ``domain`` where all tasks have the same classes.
    """

    model: str
    tasks: tuple[Task, ...]
    learned: Ref[LearnedTask]
    setting: Setting = "class"

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"model": self.model, "tasks": [task.name for task in self.tasks], "setting": self.setting}

    def run(self, context: RunContext, folder: Path) -> TaskEvaluation:
        learned = context.get(self.learned)
        assert learned.memory is not None
        network, rule = learned.newest.load(), NearestClassMean(NearestClassMean.Settings(distance="cosine"))
        samples = samples_of(Store.load(learned.memory), learned.classes)
        subset = Subset(samples, np.arange(len(samples)), np.asarray(samples.labels))
        data = context.data.part(learned.classes, {"val": subset}, context.seed)
        exemplars = self._features(context, data, "val", network)
        sums = rule.new_sums(exemplars.logits.shape[1])
        rule.update(sums, exemplars.logits, exemplars.labels, learned.classes)
        head = rule.fit(sums)
        scores: dict[Setting, dict[str, Accuracy]] = {"task": {}, self.setting: {}}
        for task in self.tasks:
            own = task.data(context.data, task.classes, context.seed)
            test = self._features(context, own, "test" if own.has_split("test") else "val", network)
            others = (name for name in head.classes if name not in task.classes)
            among: dict[Setting, tuple[str, ...]] = {"task": task.classes, self.setting: (*task.classes, *others)}
            for setting, classes in among.items():
                logits = head.for_classes(classes).logits(test.logits)
                scores[setting][task.name] = score(replace(test, logits=logits))
        name = f"{self.model} + exemplar means"
        served = sum(part.served for part in learned.parts) + head.served_bytes
        result = TaskScores(
            task=self.tasks[-1].name,
            scores={name: scores},
            served={name: served},
            kept={name: sum(part.kept for part in learned.parts)},
            seconds={name: learned.seconds},
        )
        if is_first_rank():
            write_atomic(folder / SCORES, result.model_dump_json(indent=2).encode())
        return TaskEvaluation({}, result)

    def load(self, context: RunContext, folder: Path) -> TaskEvaluation:
        return TaskEvaluation({}, TaskScores.model_validate(json.loads((folder / SCORES).read_text())))

    def _features(self, context: RunContext, data: ExperimentData, split: Split, network: Network) -> Predictions:
        """Pooled features of length 1."""
        within = replace(context, data=data)
        predicted = predict_pooled(within, network, within.loader(split, network.input))
        return replace(predicted, logits=F.normalize(predicted.logits))
