"""Learns one task of a stream, from what the tasks before it left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from augment.policy import AugmentSettings
from distill.continual.learned import LearnedTask, Part, folder_bytes
from distill.continual.strategies.base import Start, Strategy, TaskFit
from distill.continual.task import Task, keyed_seed
from distill.deltas.base import tensor_bytes
from distill.deltas.sites import classifier_names, inside
from distill.deltas.state import backbone_state
from distill.files import write_atomic
from distill.models.label_map import LabelMap, LabelMaps
from distill.models.network import Network
from distill.models.settings import StudentSettings, TeacherSettings, WeightingSettings
from distill.models.student import Student
from distill.objectives.base import Objective
from distill.report.curves import read_curves
from distill.report.items import Curve, Item
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import is_first_rank
from distill.run.prepare import PREPARED, StudentSpec, finished, prepare, trial_student
from distill.run.stage import Ref, Stage, StageError
from distill.run.teacher import label_maps, make_teacher
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import TeacherNetworks, fit_notes
from distill.training.fit import RESULT, FitSummary, load_carried, load_summary
from distill.training.settings import TrainingSettings
from distill.training.terms import Carried, needs_of

FIT, LEARNED = "fit", "learned.json"


@dataclass(frozen=True)
class LearnTask(Stage[LearnedTask]):
    """Trains the student of a task, and keeps what its strategy keeps of it.

    The stage reads no sample of another task. Everything random in it is keyed by the name of the task, and everything
    that it takes over from the tasks before comes from files.

    Args:
        task: of the stream.
        strategy: what the student starts from, and what is kept of it.
        student: network, deltas, which weights are trained.
        objectives: the terms of the loss; in the first task, those that read only the previous model are left out.
        augment: how the views are made.
        training: epochs, optimizer, schedule, guards.
        teacher: how the teacher's networks are used; None: there is none.
        networks: the teacher's networks other than the previous model.
        previous: the result of the task before.
    """

    task: Task
    strategy: Strategy.Settings
    student: StudentSettings
    objectives: tuple[Objective.Settings, ...]
    augment: AugmentSettings
    training: TrainingSettings
    teacher: TeacherSettings | None = None
    networks: tuple[Ref[TeacherNetworks], ...] = ()
    previous: Ref[LearnedTask] | None = None

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")

    def check(self, context: RunContext) -> LearnedTask:
        """Try a step of the first task, and one of the second with the first as the previous model."""
        previous = context.find(self.previous) if self.previous else None
        if self.previous is not None and (previous is None or len(previous.parts) != 1 or previous.seconds < 0):
            return LearnedTask(self.task.name, (), (), Path(), Path(), seconds=-1.0)  # two tasks were tried
        fit = self._task_fit(context, previous, Path())
        start = Start(self.student)
        within = self._within(context, fit)
        fit_spec = self._fit_spec(within, fit, compiled=False)
        with trying(f"{self.name}: building the student"):
            student = trial_student(self._spec(start, fit, fit_spec))
        fit_spec.check(student, self.name)
        part = Part(self.task.name, fit.classes, lambda: student.network, 0, 0)
        parts = (part,) if previous is None else (*previous.parts, part)
        return LearnedTask(self.task.name, fit.classes, parts, Path(), Path(), features=part)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        parts = {
            "strategy": self.strategy,
            "student": self.student,
            "augment": self.augment,
            "training": self.training,
            "teacher": self.teacher,
        }
        data = self.task.data(context.data, self.task.classes, context.seed)
        return {
            **{name: part and part.model_dump(mode="json") for name, part in parts.items()},
            "objectives": [objective.model_dump(mode="json") for objective in self.objectives],
            "task": self.task.name,
            "data": [data.fingerprint(), data.settings.model_dump(mode="json")],
        }

    def run(self, context: RunContext, folder: Path) -> LearnedTask:
        previous = context.get(self.previous) if self.previous else None
        fit = self._task_fit(context, previous, folder)
        strategy = self._strategy
        start = strategy.start(fit)
        seconds, trained, backbone = 0.0, 0, previous.backbone if previous else 0
        if start.student is not None:
            fit_spec = self._fit_spec(self._within(context, fit), fit)
            student, summary = self._fit(fit, start, fit_spec)
            seconds, trained = summary.seconds, sum(p.numel() for p in student.parameters() if p.requires_grad)
            student = finished(self._spec(start, fit, fit_spec), student)
            backbone = backbone or tensor_bytes(backbone_state(student.model, classifier_names(student.model)).values())
            if is_first_rank():
                strategy.close(fit, student)
        about = {
            "seconds": seconds,
            "trained": trained,
            "peak": sum(part.kept for part in (previous.parts if previous else ())) + folder_bytes(folder),
            "backbone": backbone,
        }
        if is_first_rank():
            write_atomic(folder / LEARNED, json.dumps(about).encode())
        return _learned(strategy, fit, about)

    def load(self, context: RunContext, folder: Path) -> LearnedTask:
        previous = context.get(self.previous) if self.previous else None
        return restored(self.task, self.strategy, self.student, context.seed, folder, previous)

    def report(self, context: RunContext, output: LearnedTask) -> Iterable[Item]:
        if (log := output.folder / FIT / "log.csv").is_file():
            yield Curve(name=self.name, log=read_curves(log))
            yield from fit_notes(self.name, load_summary(output.folder / FIT))

    @property
    def _strategy(self) -> Strategy:
        assert self.strategy.component is not None
        return self.strategy.component(self.strategy)

    def _task_fit(self, context: RunContext, previous: LearnedTask | None, folder: Path) -> TaskFit:
        return _task_fit(self.task, self._strategy, self.student, context.seed, folder, previous)

    def _within(self, context: RunContext, fit: TaskFit) -> RunContext:
        """The context with this task's data alone, and seeds that are keyed by its name."""
        data = self.task.data(context.data, fit.classes, context.seed)
        return replace(context, data=data, seed=fit.seed)

    def _fit(self, fit: TaskFit, start: Start, fit_spec: FitSpec) -> tuple[Student, FitSummary]:
        folder = fit.folder / FIT
        if start.prepared is not None and (start.prepared / PREPARED).is_file() and is_first_rank():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(start.prepared / PREPARED, folder / PREPARED)
        student = prepare(self._spec(start, fit, fit_spec), fit_spec, folder, self.name, self.training.epochs)
        take_over(student, start, fit.classes)
        return student, fit_spec.fit(student, folder, self.name)

    def _fit_spec(self, within: RunContext, fit: TaskFit, compiled: bool = True) -> FitSpec:
        objectives = self.objectives
        settings = self.teacher
        if settings is not None and fit.previous is None:
            settings = _without_previous(settings)
        momentum = None if settings is None else settings.momentum
        if settings is None or not settings.frozen:
            objectives = tuple(o for o in objectives if not o.component.reads_frozen())  # type: ignore[union-attr]
            augment = self._alone() if momentum is None else self.augment
            return FitSpec(
                within, None, objectives, augment, self.training, momentum=momentum, carried=_carried(fit.previous)
            )
        if not compiled:
            settings = settings.model_copy(update={"compile": False})
        networks, maps = self._networks(within, settings, fit)
        teacher = make_teacher(settings, objectives, networks, maps)
        parts = self.augment, self.training, settings.cache
        return FitSpec(within, teacher, objectives, *parts, momentum=momentum, carried=_carried(fit.previous))

    def _alone(self) -> AugmentSettings:
        return self.augment if self.teacher is None else self.augment.alone()

    def _networks(
        self, within: RunContext, settings: TeacherSettings, fit: TaskFit
    ) -> tuple[Sequence[Network], LabelMaps]:
        """The teacher's frozen networks in the order of the settings, and the maps of their classes."""
        given = iter([network for ref in self.networks for network in within.get(ref).networks])
        networks = []
        for own in settings.frozen:
            if own.is_previous:
                assert fit.previous is not None
                networks.append(fit.previous.newest.load())
            else:
                networks.append(next(given))
        others = [(own, network) for own, network in zip(settings.frozen, networks) if not own.is_previous]
        of_others = label_maps(
            settings.model_copy(update={"networks": tuple(own for own, _ in others)}),
            [network for _, network in others],
            fit.classes,
        )
        maps: list[LabelMap | None] = []
        number = 0
        for own in settings.frozen:
            if own.is_previous:
                maps.append(self._map_of_previous(fit))
            else:
                maps.append(of_others[number])
                number += 1
        return networks, LabelMaps(maps)

    def _map_of_previous(self, fit: TaskFit) -> LabelMap | None:
        assert fit.previous is not None
        known = fit.previous.newest.classes
        if known == fit.classes:
            return None
        sources = {index: [known.index(name)] for index, name in enumerate(fit.classes) if name in known}
        if not sources:
            raise StageError(
                f"{self.name}: teacher.networks: the previous model knows none of the task's classes, since strategy "
                f"{self.strategy.type} trains a head for each task; use another strategy, or remove it"
            )
        return LabelMap(sources, len(fit.classes), len(known))

    def _spec(self, start: Start, fit: TaskFit, fit_spec: FitSpec) -> StudentSpec:
        assert start.student is not None
        needs, _ = needs_of(fit_spec.objectives)
        return StudentSpec(start.student, fit.seed, len(fit.classes), needs, fit_spec.head)


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
    return _learned(strategy, _task_fit(task, strategy, student, seed, folder, previous), about)


def _task_fit(
    task: Task, strategy: Strategy, student: StudentSettings, seed: int, folder: Path, previous: LearnedTask | None
) -> TaskFit:
    before = previous.classes if previous else ()
    seen = (*before, *(name for name in task.classes if name not in before))
    classes = task.classes if strategy.head_per_task else seen
    return TaskFit(task, student, keyed_seed(seed, task.name), folder, classes, previous)


def _learned(strategy: Strategy, fit: TaskFit, about: Mapping[str, Any]) -> LearnedTask:
    task, previous = fit.task, fit.previous
    before = previous.classes if previous else ()
    seen = (*before, *(name for name in task.classes if name not in before))
    parts = strategy.parts(fit)
    if about["trained"]:
        parts = (*parts[:-1], replace(parts[-1], trained=about["trained"]))
    first = previous.first if previous else fit.folder
    sizes = {"peak": about["peak"], "backbone": about["backbone"]}
    return LearnedTask(task.name, seen, parts, fit.folder, first, about["seconds"], strategy.features(fit), **sizes)


def _carried(previous: LearnedTask | None) -> Carried | None:
    """The states of objectives with ``carry: stream`` at the end of the task before, from its file; None without it."""
    if previous is None or previous.folder == Path() or not (previous.folder / FIT / RESULT).is_file():
        return None
    return load_carried(previous.folder / FIT)


def _without_previous(settings: TeacherSettings) -> TeacherSettings | None:
    """The teacher of the first task: the networks other than the previous model; None if there is no other."""
    kept = tuple(network for network in settings.networks if not network.is_previous)
    if not kept:
        return None
    changed: dict[str, Any] = {"networks": kept}
    if sum(not network.is_momentum for network in kept) < 2:
        changed["weighting"] = WeightingSettings()
    return settings.model_copy(update=changed)


@torch.no_grad()
def take_over(student: Student, start: Start, classes: Sequence[str]) -> None:
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
