"""Predictions after a task on the test images of all tasks so far, in each setting of continual learning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from distill.continual.inference.base import TaskInference
from distill.continual.inference.class_names import classes_in
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.scores import Accuracy, Setting, TaskScores, masked, score
from distill.continual.task import Task
from distill.data.base import Split
from distill.files import write_atomic
from distill.models.features import Features
from distill.models.network import extract
from distill.report.items import Check, Item, Metric, Note
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.predict import logits_of
from distill.run.stage import Ref, Stage
from distill.stages.extract_features import TaskFeatures
from distill.stages.fit_heads import FittedHeads
from distill.training.evaluate import Predictions

TENSORS, SCORES = "predictions.safetensors", "scores.json"
LOGITS = frozenset({"logits"})


@dataclass(frozen=True)
class TaskEvaluation:
    """Predictions and scores after a task."""

    logits: Mapping[tuple[str, str], Predictions]
    """(part, task) → logits [N, K] of the part's classes; labels are indices into the task's classes."""
    scores: TaskScores


@dataclass(frozen=True)
class EvaluateTask(Stage[TaskEvaluation]):
    """Evaluates a learner once after a task, on the test split, or on val if there is no test split.

    A part that later tasks do not change is not evaluated again on the same images; after the last task all of it is
    read from its files once more, and its logits must be the same to the bit. The folder holds the predictions that
    were made now; earlier ones are those of the stages before. So a task's time and bytes do not grow with the number
    of tasks, unless tasks are inferred: then every part reads every image.

    Args:
        model: name of the learner in the tables.
        tasks: all tasks so far, this one last.
        learned: the learner after it.
        features: of all tasks so far, on the frozen backbone; for task inference.
        heads: whose sums over all tasks so far task inference is fitted from.
        previous: the evaluation after the task before.
        inference: rules that give the task of an image, for a learner with a head per task.
        setting: ``class``, or ``domain`` where all tasks have the same classes.
        later: tasks that come later, evaluated where all tasks have the same classes.
        again: whether to evaluate unchanged parts again.
        by_task: whether the sums that task inference reads are by task and class.
    """

    model: str
    tasks: tuple[Task, ...]
    learned: Ref[LearnedTask]
    features: tuple[Ref[TaskFeatures], ...] = ()
    heads: Ref[FittedHeads] | None = None
    previous: Ref[TaskEvaluation] | None = None
    inference: tuple[TaskInference.Settings, ...] = ()
    setting: Setting = "class"
    later: tuple[Task, ...] = ()
    again: bool = False
    by_task: bool = False

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "model": self.model,
            "setting": self.setting,
            "inference": [rule.model_dump(mode="json") for rule in self.inference],
            "tasks": [task.name for task in (*self.tasks, *self.later)],
            "again": self.again,
            "by_task": self.by_task,
        }

    def run(self, context: RunContext, folder: Path) -> TaskEvaluation:
        learned = context.get(self.learned)
        before = self._before(context)
        logits: dict[tuple[str, str], Predictions] = {}
        made: dict[tuple[str, str], Predictions] = {}
        for part in learned.parts:
            read = self._read(part, learned)
            at = [task for task in read if self.again or (part.name, task.name) not in before]
            made |= self._predict(context, part, at) if at else {}
            logits |= {pair: made[pair] if pair in made else before[pair] for pair in _pairs(part, read)}
        scores = self._scores(context, learned, logits, _changed(before, logits) if self.again else [])
        if is_first_rank():
            tensors = {
                f"{number}/{name}": getattr(of_pair, name).clone(memory_format=torch.contiguous_format)
                for number, of_pair in enumerate(made.values())
                for name in ("logits", "labels", "ids")
            }
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            content = {"pairs": list(made), "scores": scores.model_dump(mode="json")}
            write_atomic(folder / SCORES, json.dumps(content, indent=2).encode())
        return TaskEvaluation(logits, scores)

    def load(self, context: RunContext, folder: Path) -> TaskEvaluation:
        content = json.loads((folder / SCORES).read_text())
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        own = {
            (part, task): Predictions(*(tensors[f"{number}/{name}"] for name in ("logits", "labels", "ids")))
            for number, (part, task) in enumerate(content["pairs"])
        }
        learned, known = context.get(self.learned), {**self._before(context), **own}
        logits = {pair: known[pair] for part in learned.parts for pair in _pairs(part, self._read(part, learned))}
        return TaskEvaluation(logits, TaskScores.model_validate(content["scores"]))

    def report(self, context: RunContext, output: TaskEvaluation) -> Iterable[Item]:
        yield from self._cost_of_changes(context, output)
        if self.again and self.previous is not None:
            before = self._before(context)
            pairs = [pair for pair in before if pair in output.logits]
            if pairs:
                changed = _changed(before, output.logits)
                detail = f"{len(pairs)} pairs of network and task, read from their files again"
                yield Check(
                    name=f"{self.model}: logits of earlier tasks",
                    passed=not changed,
                    of="bank",
                    detail=f"other logits: {', '.join(map(str, changed))}" if changed else f"equal bits: {detail}",
                )

    def _cost_of_changes(self, context: RunContext, output: TaskEvaluation) -> Iterator[Item]:
        """The accuracy of the tasks whose networks this task has changed, before and after."""
        names = [part.name for part in context.get(self.learned).parts if part.changed]
        if self.previous is None or not names:
            return
        before, now = (
            scores.scores[self.model]["task"] for scores in (context.get(self.previous).scores, output.scores)
        )
        pairs = {
            name: (before[name].correct / before[name].images, now[name].correct / now[name].images)
            for name in names
            if name in before and before[name].images
        }
        if not pairs:
            return
        each = ", ".join(f"{name} {old:.1%} → {new:.1%}" for name, (old, new) in pairs.items())
        cost = sum(old - new for old, new in pairs.values()) / len(pairs)
        text = f"{self.model}, after {self.tasks[-1].name}: truncating the deltas of earlier tasks again cost "
        yield Note(text=f"{text}{100 * cost:.1f} points on average: {each}")
        yield Metric(
            name=f"{self.model}: cost of re-pruning after {self.tasks[-1].name}", value=cost, seed=context.seed
        )

    def _before(self, context: RunContext) -> dict[tuple[str, str], Predictions]:
        """The predictions after the task before, of the networks that this task has not changed."""
        if self.previous is None:
            return {}
        changed = {part.name for part in context.get(self.learned).parts if part.changed}
        return {pair: own for pair, own in context.get(self.previous).logits.items() if pair[0] not in changed}

    def _read(self, part: LearnedNetwork, learned: LearnedTask) -> list[Task]:
        """The tasks on whose images a score reads the logits of a part: its own alone, if tasks are not inferred."""
        every = [*self.tasks, *self.later]
        if self._has_one_head(learned) or self.inference:
            return every
        return [task for task in every if task.name == part.name]

    def _has_one_head(self, learned: LearnedTask) -> bool:
        return len(learned.parts) == 1 and learned.parts[0].classes == learned.classes and not self.inference

    def _predict(
        self, context: RunContext, part: LearnedNetwork, tasks: Sequence[Task]
    ) -> dict[tuple[str, str], Predictions]:
        network = part.load()

        def logits_of_view(view: Tensor) -> Tensor:
            features: Features = extract(network.model, view, LOGITS)
            return logits_of(features)

        made: dict[tuple[str, str], Predictions] = {}
        of_images: dict[object, Predictions] = {}
        for task in tasks:
            data = task.data(context.data, task.classes, context.seed)
            split: Split = "test" if data.has_split("test") else "val"
            images = task.images(split)
            if images not in of_images:  # the tasks of some streams have the same test images
                loader = replace(context, data=data).loader(split, network.input)
                of_images[images] = context.predict(network.model, logits_of_view, network.input, loader)
            made[part.name, task.name] = of_images[images]
        return made

    def _scores(
        self,
        context: RunContext,
        learned: LearnedTask,
        logits: Mapping[tuple[str, str], Predictions],
        changed: Sequence[tuple[str, str]],
    ) -> TaskScores:
        scores: dict[str, dict[Setting, dict[str, Accuracy]]] = {}
        served = sum(part.served for part in learned.parts)
        kept = sum(part.kept for part in learned.parts)
        if not learned.classes:  # images without labels: there is nothing to score
            scores[self.model] = {}
        elif self._has_one_head(learned):
            scores[self.model] = self._of_one_head(learned, logits)
        else:
            scores[self.model] = {"task": self._of_own_heads(learned, logits)}
            for rule in self.inference:
                name = f"{self.model} + {rule.type}"
                scores[name] = {self.setting: self._inferred(context, rule, learned, logits)}
        names = list(scores)
        return TaskScores(
            task=self.tasks[-1].name,
            scores=scores,
            served=dict.fromkeys(names, served),
            kept=dict.fromkeys(names, kept),
            peak=dict.fromkeys(names, max(learned.peak, kept)),
            backbone=learned.backbone,
            seconds=dict.fromkeys(names, learned.seconds),
        )

    def _of_one_head(
        self, learned: LearnedTask, logits: Mapping[tuple[str, str], Predictions]
    ) -> dict[Setting, dict[str, Accuracy]]:
        part = learned.parts[0]
        scores: dict[Setting, dict[str, Accuracy]] = {"task": {}, self.setting: {}}
        for task in (*self.tasks, *self.later):
            own = _with_labels(logits[part.name, task.name], task.classes, part.classes)
            within = replace(own, logits=masked(own.logits, part.classes, task.classes))
            scores["task"][task.name] = score(within)
            scores[self.setting][task.name] = score(own)
        return scores

    def _of_own_heads(self, learned: LearnedTask, logits: Mapping[tuple[str, str], Predictions]) -> dict[str, Accuracy]:
        parts = {part.name: part for part in learned.parts}
        return {
            task.name: score(_with_labels(logits[task.name, task.name], task.classes, parts[task.name].classes))
            for task in self.tasks
        }

    def _inferred(
        self,
        context: RunContext,
        rule: TaskInference.Settings,
        learned: LearnedTask,
        logits: Mapping[tuple[str, str], Predictions],
    ) -> dict[str, Accuracy]:
        """Scores where the task of each image is inferred from the image alone."""
        assert rule.component is not None
        inference: TaskInference = rule.component(rule)
        features = {output.task.name: output for output in map(context.get, self.features)}
        head = inference.head()
        assert head is None or self.heads is not None
        sums = context.get(self.heads).of_tasks.of(head) if head is not None and self.heads is not None else None
        tasks = {part.name: part.classes for part in learned.parts}
        inference.fit(classes_in(sums, tasks, self.by_task), sums)
        scores = {}
        for task in self.tasks:
            of_parts = {part.name: logits[part.name, task.name] for part in learned.parts}
            own = next(iter(of_parts.values()))
            inferred = inference.infer(
                features[task.name].evaluation.logits if inference.reads == "features" else None,
                {name: predictions.logits for name, predictions in of_parts.items()},
            )
            united = torch.full((len(own.labels), len(learned.classes)), -torch.inf)
            for number, part in enumerate(learned.parts):
                rows = inferred == number
                columns = [learned.classes.index(name) for name in part.classes]
                united[rows.nonzero(), torch.tensor(columns)] = of_parts[part.name].logits[rows]
            scores[task.name] = score(_with_labels(replace(own, logits=united), task.classes, learned.classes))
        return scores


def _pairs(part: LearnedNetwork, tasks: Sequence[Task]) -> list[tuple[str, str]]:
    return [(part.name, task.name) for task in tasks]


def _with_labels(predictions: Predictions, own: Sequence[str], classes: Sequence[str]) -> Predictions:
    """The predictions with labels that are indices into ``classes`` instead of into ``own``."""
    new = torch.tensor([*(classes.index(name) if name in classes else -1 for name in own), -1])
    return replace(predictions, labels=new[predictions.labels])


def _changed(
    before: Mapping[tuple[str, str], Predictions], now: Mapping[tuple[str, str], Predictions]
) -> list[tuple[str, str]]:
    return [pair for pair in before if pair in now and not torch.equal(before[pair].logits, now[pair].logits)]
