"""Controls of a stream that keep the features of all images: joint, sequential and task-wise linear heads."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.continual.scores import Setting, TaskScores, masked, score
from distill.continual.task import keyed_seed
from distill.files import write_atomic
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage
from distill.stages.extract_features import TaskFeatures
from distill.training.evaluate import Predictions
from distill.training.probe import fit_probe

SCORES = "scores.json"
EPOCHS, BATCH, RATE = 20, 64, 1e-3


@dataclass(frozen=True)
class ControlScores:
    """The scores of the controls after each task."""

    stages: tuple[TaskScores, ...]


@dataclass(frozen=True)
class StreamControls(Stage[ControlScores]):
    """Linear heads on the frozen backbone's features.

    ===============  ===============================================================================================
    joint head       logistic regression on all tasks together, after the last: what a linear head reaches
    sequential head  one linear head, trained on one task after the other by AdamW: what forgets
    task heads       logistic regression on each task alone; scored where the task is known
    ===============  ===============================================================================================

    The penalty of the logistic regressions is chosen by the accuracy on val; where there is none, or val is what is
    evaluated, by that on the training images.

    Args:
        features: of all tasks, in their order.
        setting: of the evaluation besides the task-incremental one.
    """

    features: tuple[Ref[TaskFeatures], ...]
    setting: Setting = "class"

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"setting": self.setting}

    def run(self, context: RunContext, folder: Path) -> ControlScores:
        outputs = [context.get(ref) for ref in self.features]
        stages = [TaskScores(task=output.task.name, scores={}) for output in outputs]
        self._joint(outputs, stages)
        self._sequential(context, outputs, stages)
        self._task_heads(outputs, stages)
        if is_first_rank():
            content = [stage.model_dump(mode="json") for stage in stages]
            write_atomic(folder / SCORES, json.dumps(content, indent=2).encode())
        return ControlScores(tuple(stages))

    def load(self, context: RunContext, folder: Path) -> ControlScores:
        content = json.loads((folder / SCORES).read_text())
        return ControlScores(tuple(TaskScores.model_validate(stage) for stage in content))

    def _joint(self, outputs: list[TaskFeatures], stages: list[TaskScores]) -> None:
        begun = time.perf_counter()
        head = _fit(outputs)
        self._note(stages[-1], "joint head", head, outputs, time.perf_counter() - begun)

    def _task_heads(self, outputs: list[TaskFeatures], stages: list[TaskScores]) -> None:
        heads: list[ControlHead] = []
        for number, output in enumerate(outputs, 1):
            begun = time.perf_counter()
            heads.append(_fit([output]))
            stage, seconds = stages[number - 1], time.perf_counter() - begun
            within = {earlier.task.name: score(head.predict(earlier)) for earlier, head in zip(outputs[:number], heads)}
            stage.scores["task heads"] = {"task": within}
            stage.served["task heads"] = stage.kept["task heads"] = sum(head.bytes for head in heads)
            stage.seconds["task heads"] = seconds

    def _sequential(self, context: RunContext, outputs: list[TaskFeatures], stages: list[TaskScores]) -> None:
        width = outputs[0].evaluation.logits.shape[1]
        head = ControlHead((), torch.zeros(0, width), torch.zeros(0))
        for number, output in enumerate(outputs, 1):
            begun = time.perf_counter()
            head = train_on(head, output, keyed_seed(context.seed, f"{output.task.name}/sequential head"))
            self._note(stages[number - 1], "sequential head", head, outputs[:number], time.perf_counter() - begun)

    def _note(
        self, stage: TaskScores, name: str, head: ControlHead, outputs: Sequence[TaskFeatures], seconds: float
    ) -> None:
        stage.scores[name] = head.scores(outputs, self.setting)
        stage.served[name] = stage.kept[name] = head.bytes
        stage.seconds[name] = seconds


@dataclass(frozen=True)
class ControlHead:
    """A linear head on features."""

    classes: tuple[str, ...]
    """Names of its rows."""
    weight: Tensor
    """[K, D]."""
    bias: Tensor
    """[K]."""

    @property
    def bytes(self) -> int:
        return 4 * (self.weight.numel() + self.bias.numel())

    def predict(self, output: TaskFeatures) -> Predictions:
        """Logits [N, K] of a task's test images, with labels that are indices into ``classes``."""
        test = output.evaluation
        labels = _counted_in(self.classes, output.task.classes, test.labels)
        return Predictions(test.logits @ self.weight.T + self.bias, labels, test.ids)

    def scores(self, outputs: Sequence[TaskFeatures], setting: Setting) -> dict[Setting, dict[str, Any]]:
        """Setting → task → score: all classes of the head compete in ``setting``, those of the task in ``task``."""
        scores: dict[Setting, dict[str, Any]] = {"task": {}, setting: {}}
        for output in outputs:
            own = self.predict(output)
            within = Predictions(masked(own.logits, self.classes, output.task.classes), own.labels, own.ids)
            scores["task"][output.task.name] = score(within)
            scores[setting][output.task.name] = score(own)
        return scores


def _counted_in(classes: Sequence[str], own: Sequence[str], labels: Tensor) -> Tensor:
    return torch.tensor([*(classes.index(name) for name in own), -1])[labels]


def _fit(outputs: Sequence[TaskFeatures]) -> ControlHead:
    """Logistic regression on the features of some tasks; a single class needs no regression."""
    classes = tuple(dict.fromkeys(name for output in outputs for name in output.task.classes))
    if len(classes) == 1:
        return ControlHead(classes, torch.zeros(1, outputs[0].evaluation.logits.shape[1]), torch.zeros(1))
    train = _together(outputs, classes, "train")
    with_val = [output for output in outputs if output.held_out is not None]
    held_out = _together(with_val, classes, "val") if with_val else train
    probe = fit_probe(train, held_out, len(classes))
    return ControlHead(classes, probe.weight, probe.bias)


def _together(outputs: Sequence[TaskFeatures], classes: Sequence[str], split: Any) -> Predictions:
    parts = [output.splits[split] for output in outputs]
    labels = [_counted_in(classes, output.task.classes, part.labels) for output, part in zip(outputs, parts)]
    return Predictions(
        torch.cat([part.logits for part in parts]), torch.cat(labels), torch.cat([part.ids for part in parts])
    )


def train_on(head: ControlHead, output: TaskFeatures, seed: int) -> ControlHead:
    """Train a linear head further on the features of a task, by AdamW.

    Args:
        head: rows for the task's new classes are added, which start at zero.
        output: features of the task.
        seed: of the order of the images.

    Returns:
        The head with all classes so far.
    """
    train = output.splits["train"]
    new = [name for name in output.task.classes if name not in head.classes]
    classes = (*head.classes, *new)
    width = train.logits.shape[1]
    labels = _counted_in(classes, output.task.classes, train.labels)
    layer = nn.Linear(width, len(classes))
    with torch.no_grad():
        layer.weight.copy_(torch.cat([head.weight, torch.zeros(len(new), width)]))
        layer.bias.copy_(torch.cat([head.bias, torch.zeros(len(new))]))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(layer(train.logits[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ControlHead(classes, layer.weight.detach(), layer.bias.detach())
