"""The tasks that rules give to images, and the logits of a bank that follow from them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from distill.continual.fitted_heads import FittedHeads
from distill.continual.inference.base import TaskInference
from distill.continual.inference.class_names import classes_in
from distill.continual.known_outputs import Known, at_ids
from distill.continual.learned import LearnedTask


def fitted_rules(
    settings: Iterable[TaskInference.Settings], learned: LearnedTask, heads: FittedHeads | None, by_task: bool
) -> list[TaskInference]:
    """Rules that are fitted to the tasks so far.

    Args:
        settings: of the rules.
        learned: a network for each task.
        heads: whose sums the rules read; None: there are none, and every rule reads logits.
        by_task: whether the sums are by task and class.

    Returns:
        The rules, in the order of their settings.
    """
    rules = []
    tasks = {part.name: part.classes for part in learned.parts}
    for own in settings:
        assert own.component is not None and issubclass(own.component, TaskInference)
        rule: TaskInference = own.component(own)
        head = rule.head()
        assert head is None or heads is not None
        sums = heads.of_tasks.of(head) if head is not None and heads is not None else None
        rule.fit(classes_in(sums, tasks, by_task), sums)
        rules.append(rule)
    return rules


def united_logits(learned: LearnedTask, logits: Known, task: str, inferred_N: Tensor) -> Tensor:
    """Logits of a task's images over all classes, of which those of the inferred task alone compete.

    Args:
        learned: a network for each task.
        logits: hold those of each image by the network that it is given to.
        task: whose test images.
        inferred_N: [N] number of the network that each image is given to.

    Returns:
        [N, K] in the order of ``learned.classes``; −∞ for classes of other tasks.
    """
    ids = logits[task, task].ids
    united = torch.full((len(ids), len(learned.classes)), -torch.inf)
    for number, part in enumerate(learned.parts):
        rows = (inferred_N == number).nonzero()
        if len(rows):
            columns = torch.tensor([learned.classes.index(name) for name in part.classes])
            united[rows, columns] = at_ids(logits[part.name, task], ids[rows[:, 0]]).logits
    return united
