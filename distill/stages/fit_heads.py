"""Closed-form heads after a task: adds the task's features to the sums, fits each head, and scores it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from distill.continual.fitted_heads import FittedHeads
from distill.continual.heads.base import FittedHead, Head, LabeledFeatures
from distill.continual.heads.shared import HeadSums
from distill.continual.inference.base import TaskInference
from distill.continual.inference.class_names import class_of
from distill.continual.scores import Setting, TaskScores, score
from distill.files import write_atomic
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.stages.extract_features import TaskFeatures
from distill.training.evaluate import Predictions

SUMS, HELD_OUT, OF_TASKS, SCORES = "sums", "held-out-sums", "task-sums", "scores.json"


@dataclass(frozen=True)
class FitHeads(Stage[FittedHeads]):
    """Fits every head on all tasks so far, from sums alone.

    The sums of this task are added to those of the tasks before it; no features of those are read but the ones that
    are evaluated. A head chooses its settings by val, which there has to be beside a test split: without a test split,
    val is what is evaluated.

    Args:
        heads: their settings.
        features: of all tasks so far, this one last.
        previous: the heads after the task before.
        setting: of the evaluation besides the task-incremental one.
        prefix: of the names of the models.
        inference: rules that give the task of an image; the sums that they read are kept too.
        by_task: whether the sums of these rules are apart, by task and class, since tasks have the same classes.
    """

    heads: tuple[Head.Settings, ...]
    features: tuple[Ref[TaskFeatures], ...]
    previous: Ref[FittedHeads] | None = None
    setting: Setting = "class"
    prefix: str = ""
    inference: tuple[TaskInference.Settings, ...] = ()
    by_task: bool = False

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "heads": [head.model_dump(mode="json") for head in self.heads],
            "setting": self.setting,
            "inference": [rule.model_dump(mode="json") for rule in self.inference],
            "by_task": self.by_task,
        }

    def check(self, context: RunContext) -> None:
        data = context.data
        if data.has_split("test") and data.has_split("val"):
            return
        for number, head in enumerate(self._heads):
            if head.needs:
                text = "chooses by val, and there is none beside the split that is evaluated"
                raise StageError(f"{self.name}: heads.{number}: {head.settings.shown} {text}; give a penalty instead")

    def run(self, context: RunContext, folder: Path) -> FittedHeads:
        begun = time.perf_counter()
        outputs = [context.get(ref) for ref in self.features]
        newest = outputs[-1]
        train = newest.splits["train"]
        sums, held_out, of_tasks = self._empty(train)
        if self.previous is not None:
            self._load(context.get(self.previous).folder, sums, held_out, of_tasks)
        if self.by_task:
            names = [class_of(newest.task.name, name) for name in newest.task.classes]
            of_tasks.add(train.logits, train.labels, names)
        sums.add(train.logits, train.labels, newest.task.classes)
        if (val := newest.held_out) is not None:
            held_out.add(val.logits, val.labels, newest.task.classes)
        summed = time.perf_counter() - begun
        scores: dict[str, dict[Setting, dict[str, Any]]] = {}
        served, seconds = {}, {}
        tensors: dict[str, Tensor] = {}
        for head in self._heads:
            name = self.prefix + head.settings.shown
            started = time.perf_counter()
            fitted = head.fit(sums.of(head), self._held_out(outputs), held_out.of(head))
            seconds[name] = newest.seconds + summed + time.perf_counter() - started
            served[name] = fitted.served_bytes
            scores[name] = self._scores(fitted, outputs)
            tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in fitted.tensors().items()}
        kept = {name: size + sums.kept_bytes + held_out.kept_bytes for name, size in served.items()}
        result = TaskScores(task=newest.task.name, scores=scores, served=served, kept=kept, seconds=seconds)
        if is_first_rank():
            sums.save(folder / SUMS)
            held_out.save(folder / HELD_OUT)
            if self.by_task:
                of_tasks.save(folder / OF_TASKS)
            write_atomic(folder / "heads.safetensors", safetensors.torch.save(tensors))
            write_atomic(folder / SCORES, result.model_dump_json(indent=2).encode())
        return FittedHeads(sums, held_out, result, folder, of_tasks)

    def load(self, context: RunContext, folder: Path) -> FittedHeads:
        train = context.get(self.features[-1]).splits["train"]
        sums, held_out, of_tasks = self._empty(train)
        self._load(folder, sums, held_out, of_tasks)
        scores = TaskScores.model_validate(json.loads((folder / SCORES).read_text()))
        return FittedHeads(sums, held_out, scores, folder, of_tasks)

    def _load(self, folder: Path, sums: HeadSums, held_out: HeadSums, of_tasks: HeadSums) -> None:
        sums.load(folder / SUMS)
        held_out.load(folder / HELD_OUT)
        if self.by_task:
            of_tasks.load(folder / OF_TASKS)

    @property
    def _heads(self) -> list[Head]:
        return [settings.component(settings) for settings in self.heads]  # type: ignore[misc]

    def _empty(self, like: Predictions) -> tuple[HeadSums, HeadSums, HeadSums]:
        """Sums of the training images, of the held-out ones, and those that task inference reads."""
        made = [rule.component(rule).head() for rule in self.inference]  # type: ignore[misc]
        rules, width = [head for head in made if head is not None], like.logits.shape[1]
        if self.by_task:
            return HeadSums(self._heads, width), HeadSums(self._heads, width), HeadSums(rules, width)
        sums = HeadSums([*self._heads, *rules], width)
        return sums, HeadSums([*self._heads, *rules], width), sums

    def _held_out(self, outputs: list[TaskFeatures]) -> LabeledFeatures | None:
        """The held-out images of this task; those of earlier tasks are gone."""
        newest = outputs[-1]
        if (val := newest.held_out) is None:
            return None
        return LabeledFeatures(val.logits, val.labels, newest.task.classes)

    def _scores(self, fitted: FittedHead, outputs: list[TaskFeatures]) -> dict[Setting, dict[str, Any]]:
        scores: dict[Setting, dict[str, Any]] = {"task": {}, self.setting: {}}
        for output in outputs:
            test, own = output.evaluation, output.task.classes
            within = fitted.for_classes(own).logits(test.logits)
            scores["task"][output.task.name] = score(Predictions(within, test.labels, test.ids))
            seen = (*own, *(name for name in fitted.classes if name not in own))  # labels count the task's classes
            logits = fitted.for_classes(seen).logits(test.logits)
            scores[self.setting][output.task.name] = score(Predictions(logits, test.labels, test.ids))
        return scores
