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

from distill.continual.fitted_heads import FittedHeads
from distill.continual.inference.base import TaskInference
from distill.continual.inferred import fitted_rules, united_logits
from distill.continual.known_outputs import Known, Pair, absent, predict_part, with_more
from distill.continual.learned import LearnedNetwork, LearnedTask
from distill.continual.scores import Accuracy, Setting, TaskScores, masked, score
from distill.continual.task import Task
from distill.files import write_atomic
from distill.report.items import Check, Item, Metric, Note
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage
from distill.stages.extract_features import TaskFeatures
from distill.training.evaluate import Predictions

TENSORS, SCORES = "predictions.safetensors", "scores.json"


@dataclass(frozen=True)
class TaskEvaluation:
    """Predictions and scores after a task."""

    logits: Known
    """Of each part on the test images of tasks: all of them, or those that were ever given to the part."""
    scores: TaskScores


@dataclass(frozen=True)
class EvaluateTask(Stage[TaskEvaluation]):
    """Evaluates a learner once after a task, on the test split, or on val if there is no test split.

    The output of a part that later tasks do not change is computed once for an image. Where tasks are inferred from
    features, a part computes only the images that are given to it: those of the new task, and those of earlier tasks
    that the new classes give to another part than before. So a task's time and bytes do not grow with the number of
    tasks. A rule that reads logits needs those of every part on every image: each task costs as many outputs as there
    are tasks. After the last task every part is read from its files once more, and its logits on its own task's images
    must be the same to the bit. The folder holds the outputs that were computed now; earlier ones are those of the
    stages before.

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
        learned, before = context.get(self.learned), self._before(context)
        heads = context.get(self.heads) if self.heads is not None else None
        rules = fitted_rules(self.inference, learned, heads, self.by_task)
        inferred = {
            rule.settings.type: self._inferred_from_features(context, rule)
            for rule in rules
            if rule.reads == "features"
        }
        tasks = {task.name: task for task in (*self.tasks, *self.later)}
        made: dict[Pair, Predictions] = {}
        for number, part in enumerate(learned.parts):
            wanted = self._wanted(learned, part, any(rule.reads == "logits" for rule in rules))
            for of_task in inferred.values():
                for task, number_N in of_task.items():
                    ids = self._ids(context, task)[number_N == number]
                    if (others := wanted.get(task, ids[:0])) is not None:  # None: all of the images
                        wanted[task] = torch.cat([others, ids]).unique()
            made |= predict_part(context, part, tasks, self._missing(wanted, part, before, learned))
        logits = with_more(before, made)
        scores = self._scores(learned, logits, rules, inferred)
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
        return TaskEvaluation(with_more(self._before(context), own), TaskScores.model_validate(content["scores"]))

    def report(self, context: RunContext, output: TaskEvaluation) -> Iterable[Item]:
        yield from self._cost_of_changes(context, output)
        if self.again and self.previous is not None:
            learned, before = context.get(self.learned), self._before(context)
            pairs = [pair for pair in before if self._is_read_again(pair, learned)]
            if pairs:
                changed = [pair for pair in pairs if not torch.equal(before[pair].logits, output.logits[pair].logits)]
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
            scores.scores[self.model].get("task", {}) for scores in (context.get(self.previous).scores, output.scores)
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

    def _ids(self, context: RunContext, task: str) -> Tensor:
        """Ids [N] of a task's test images, in the order of their features."""
        return self._features(context)[task].evaluation.ids

    def _features(self, context: RunContext) -> dict[str, TaskFeatures]:
        return {output.task.name: output for output in map(context.get, self.features)}

    def _wanted(self, learned: LearnedTask, part: LearnedNetwork, every: bool) -> dict[str, Tensor | None]:
        """The tasks on all of whose images the scores read a part: its own, if tasks are not inferred from logits."""
        names = [task.name for task in (*self.tasks, *self.later)]
        if self._has_one_head(learned) or every:
            return dict.fromkeys(names)
        return {name: None for name in names if name == part.name}

    def _missing(
        self, wanted: Mapping[str, Tensor | None], part: LearnedNetwork, before: Known, learned: LearnedTask
    ) -> dict[str, Tensor | None]:
        """What of the wanted is not known, or is read again."""
        missing: dict[str, Tensor | None] = {}
        for task, ids in wanted.items():
            known = before.get((part.name, task))
            if ids is None:
                if known is None or (self.again and self._is_read_again((part.name, task), learned)):
                    missing[task] = None
            elif len(rest := absent(known, ids)):
                missing[task] = rest
        return missing

    def _is_read_again(self, pair: Pair, learned: LearnedTask) -> bool:
        return self._has_one_head(learned) or pair[0] == pair[1]

    def _before(self, context: RunContext) -> dict[Pair, Predictions]:
        """The predictions after the task before, of the networks that this task has not changed."""
        if self.previous is None:
            return {}
        same = {part.name for part in context.get(self.learned).parts if not part.changed}
        return {pair: own for pair, own in context.get(self.previous).logits.items() if pair[0] in same}

    def _has_one_head(self, learned: LearnedTask) -> bool:
        return len(learned.parts) == 1 and learned.parts[0].classes == learned.classes and not self.inference

    def _scores(
        self,
        learned: LearnedTask,
        logits: Known,
        rules: Sequence[TaskInference],
        inferred: Mapping[str, Mapping[str, Tensor]],
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
            for rule in rules:
                of_task = inferred.get(rule.settings.type) or self._inferred_from_logits(rule, learned, logits)
                scores[f"{self.model} + {rule.settings.type}"] = {self.setting: self._united(learned, logits, of_task)}
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

    def _of_one_head(self, learned: LearnedTask, logits: Known) -> dict[Setting, dict[str, Accuracy]]:
        part = learned.parts[0]
        scores: dict[Setting, dict[str, Accuracy]] = {"task": {}, self.setting: {}}
        for task in (*self.tasks, *self.later):
            own = _with_labels(logits[part.name, task.name], task.classes, part.classes)
            within = replace(own, logits=masked(own.logits, part.classes, task.classes))
            scores["task"][task.name] = score(within)
            scores[self.setting][task.name] = score(own)
        return scores

    def _of_own_heads(self, learned: LearnedTask, logits: Known) -> dict[str, Accuracy]:
        parts = {part.name: part for part in learned.parts}
        return {
            task.name: score(_with_labels(logits[task.name, task.name], task.classes, parts[task.name].classes))
            for task in self.tasks
        }

    def _inferred_from_features(self, context: RunContext, rule: TaskInference) -> dict[str, Tensor]:
        """Task → number [N] of the part that each of its images is given to."""
        features = self._features(context)
        return {task.name: rule.infer(features[task.name].evaluation.logits) for task in self.tasks}

    def _inferred_from_logits(self, rule: TaskInference, learned: LearnedTask, logits: Known) -> dict[str, Tensor]:
        return {
            task.name: rule.infer(logits={part.name: logits[part.name, task.name].logits for part in learned.parts})
            for task in self.tasks
        }

    def _united(self, learned: LearnedTask, logits: Known, inferred: Mapping[str, Tensor]) -> dict[str, Accuracy]:
        """Scores where the task of each image is inferred: the classes of that task alone compete."""
        scores = {}
        for task in self.tasks:
            own = replace(
                logits[task.name, task.name], logits=united_logits(learned, logits, task.name, inferred[task.name])
            )
            scores[task.name] = score(_with_labels(own, task.classes, learned.classes))
        return scores


def _with_labels(predictions: Predictions, own: Sequence[str], classes: Sequence[str]) -> Predictions:
    """The predictions with labels that are indices into ``classes`` instead of into ``own``."""
    new = torch.tensor([*(classes.index(name) if name in classes else -1 for name in own), -1])
    return replace(predictions, labels=new[predictions.labels])
