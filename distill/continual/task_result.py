"""What a stage that learns a task begins with and returns, also when it is read from its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distill.continual.learned import LearnedTask
from distill.continual.memory.keep import FILE as MEMORY
from distill.continual.regularizers.carried import FILE as REGULARIZERS
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.strategies.prior import PRIOR
from distill.continual.task import Task, keyed_seed
from distill.deltas.sites import classifier_names, inside
from distill.models.settings import StudentSettings
from distill.models.student import Student

LEARNED = "learned.json"


def restored(
    task: Task,
    settings: Strategy.Settings,
    student: StudentSettings,
    seed: int,
    folder: Path,
    previous: LearnedTask | None,
) -> LearnedTask:
    """The result of a finished :class:`LearnTask`, from its folder.

    Args:
        task: that was learned; its samples are not needed.
        settings: of the strategy.
        student: of the experiment.
        seed: of the run.
        folder: of the stage, or a copy of it.
        previous: the result of the task before.

    Returns:
        The learner after the task.
    """
    assert settings.component is not None
    strategy: Strategy = settings.component(settings)
    about = json.loads((folder / LEARNED).read_text())
    return learned_task(strategy, task_fit_of(task, strategy, student, seed, folder, previous), about)


def task_fit_of(
    task: Task, strategy: Strategy, student: StudentSettings, seed: int, folder: Path, previous: LearnedTask | None
) -> TaskFit:
    """What a strategy knows in a task.

    Args:
        task: of the stream.
        strategy: decides whether the head has the task's classes, or all so far.
        student: of the experiment.
        seed: of the run.
        folder: of the stage that learns the task.
        previous: the result of the task before.

    Returns:
        The classes of the head, and a seed that is keyed by the task's name.
    """
    classes = task.classes if strategy.head_per_task else seen_classes(task, previous)
    earlier = previous.folders if previous else ()
    return TaskFit(task, student, keyed_seed(seed, task.name), folder, classes, previous, earlier)


def seen_classes(task: Task, previous: LearnedTask | None) -> tuple[str, ...]:
    """The classes of all tasks so far, in the order in which they came."""
    return tuple(dict.fromkeys((*(previous.classes if previous else ()), *task.classes)))


def learned_task(strategy: Strategy, fit: TaskFit, about: Mapping[str, Any]) -> LearnedTask:
    """The result of a task that is closed.

    Args:
        strategy: reads the networks from their files.
        fit: of the task.
        about: content of ``learned.json``.

    Returns:
        The learner, with the bytes of everything that is kept for the next task.
    """
    parts = strategy.parts(fit)
    if about["trained"]:
        parts = (*parts[:-1], replace(parts[-1], trained=about["trained"]))
    carried = [fit.folder / name for name in (MEMORY, REGULARIZERS, PRIOR) if (fit.folder / name).is_file()]
    if carried or about["carried"]:
        kept = parts[-1].kept + about["carried"] + sum(file.stat().st_size for file in carried)
        parts = (*parts[:-1], replace(parts[-1], kept=kept))
    memory = fit.folder / MEMORY
    return LearnedTask(
        fit.task.name,
        seen_classes(fit.task, fit.previous),
        parts,
        fit.folder,
        fit.previous.first if fit.previous else fit.folder,
        about["seconds"],
        strategy.features(fit),
        about["peak"],
        about["backbone"],
        memory if memory.is_file() else None,
        (*fit.earlier, fit.folder),
    )


@torch.no_grad()
def take_over(student: Student, start: TaskStart, classes: Sequence[str]) -> None:
    """Start a student from the weights of an earlier one, whose head may have fewer classes.

    Args:
        student: changed in place.
        start: weights of the earlier one, and the classes of the rows of its head.
        classes: of the student's head; rows of classes that the earlier one lacks keep their values.
    """
    own, head = student.own_state(), classifier_names(student.model)
    for key, value in start.weights.items():
        target = own[key]
        if not inside(key.removeprefix("model."), head):
            target.copy_(value)
            continue
        for row, name in enumerate(start.classes):
            target[classes.index(name)].copy_(value[row])
