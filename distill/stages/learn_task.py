"""Learns one task of a stream, from what the tasks before it left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from augment.policy import AugmentSettings
from distill.continual.carry import carried_bytes, carry_on, merge_momentum
from distill.continual.learned import LearnedNetwork, LearnedTask, folder_bytes
from distill.continual.memory.base import Memory
from distill.continual.memory.keep import FILE as MEMORY
from distill.continual.memory.keep import capacity, exemplars_alone, keep, names_in, with_memory
from distill.continual.memory.store import Store
from distill.continual.previous_model import with_previous, without_previous
from distill.continual.regularizers.base import Regularizer
from distill.continual.regularizers.carried import FILE as REGULARIZERS
from distill.continual.regularizers.carried import TrainingViews, build, close, save
from distill.continual.strategies.base import Strategy, TaskFit, TaskStart
from distill.continual.task import Task
from distill.continual.task_result import LEARNED, learned_task, restored, seen_classes, take_over, task_fit_of
from distill.deltas.base import tensor_bytes
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.models.student import Student
from distill.models.teacher_settings import TeacherSettings
from distill.objectives.base import Objective
from distill.objectives.ce import CrossEntropy
from distill.report.curves import read_curves
from distill.report.items import Curve, Item, Note
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import is_first_rank
from distill.run.prepare import PREPARED, StudentSpec, finished, prepare, trial_student
from distill.run.stage import Ref, Stage, StageError
from distill.run.start import check_start, start_key, start_note
from distill.run.teacher import make_teacher, text_fingerprints, text_store
from distill.run.teacher_network import check_file
from distill.run.trial import trying
from distill.stages.outputs import TeacherNetworks, fit_notes
from distill.training.fit import FitSummary, load_summary
from distill.training.settings import TrainingSettings
from distill.training.terms import needs_of, trains_head

FIT = "fit"


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
        memory: which images are kept for later tasks; None: none.
        regularizers: penalties on moving away from the weights of earlier tasks.
        exemplars: learner whose memory is trained on instead of the task's images, with as many steps as it took.
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
    memory: Memory.Settings | None = None
    regularizers: tuple[Regularizer.Settings, ...] = ()
    exemplars: Ref[LearnedTask] | None = None

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")
        check_start(self.student)

    def check(self, context: RunContext) -> LearnedTask:
        """Try a step of the first task, and one of the second with the first as the previous model."""
        previous = context.find(self.previous) if self.previous else None
        self._check_memory(context)
        if self.previous is not None and (previous is None or len(previous.parts) != 1 or previous.seconds < 0):
            seen = seen_classes(self.task, previous)
            return LearnedTask(self.task.name, seen, (), Path(), Path(), seconds=-1.0)  # two tasks were tried
        fit = self._task_fit(context, previous, Path())
        start = TaskStart(self.student)
        within = self._within(context, fit)
        needs_labels = all(objective.component.needs_labels for objective in self.objectives)  # type: ignore[union-attr]
        if needs_labels and not within.data.labeled_count:
            names = ", ".join(objective.type for objective in self.objectives)
            raise StageError(f"{self.name}: objectives: {names} learn from labels, and no image of the task has one")
        fit_spec = self._fit_spec(within, fit, compiled=False)
        with trying(f"{self.name}: building the student"):
            student = trial_student(self._spec(start, fit, fit_spec))
        fit_spec.check(student, self.name)
        part = LearnedNetwork(self.task.name, fit.classes, lambda: student.network, 0, 0)
        parts = (part,) if previous is None else (*previous.parts, part)
        return LearnedTask(self.task.name, seen_classes(self.task, previous), parts, Path(), Path(), features=part)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        parts = {
            "strategy": self.strategy,
            "student": self.student,
            "augment": self.augment,
            "training": self.training,
            "teacher": self.teacher,
            "memory": self.memory,
        }
        data = self.task.data(context.data, self.task.classes, context.seed)
        return {
            **{name: part and part.model_dump(mode="json") for name, part in parts.items()},
            **start_key(self.student),
            "objectives": [objective.model_dump(mode="json") for objective in self.objectives],
            "regularizers": [regularizer.model_dump(mode="json") for regularizer in self.regularizers],
            "task": self.task.name,
            "data": [data.fingerprint(), data.settings.model_dump(mode="json")],
            **({"texts": texts} if (texts := text_fingerprints(self.teacher)) else {}),
        }

    def run(self, context: RunContext, folder: Path) -> LearnedTask:
        previous = context.get(self.previous) if self.previous else None
        fit = self._task_fit(context, previous, folder)
        strategy = self._strategy
        start = strategy.start(fit)
        seconds, trained, backbone = 0.0, 0, previous.backbone if previous else 0
        note = None
        if start.student is not None:
            fit_spec = self._scaled(context, self._fit_spec(self._within(context, fit), fit))
            if start.carried is not None:
                fit_spec = carry_on(fit_spec, start.carried)
            student, summary = self._fit(fit, start, fit_spec)
            seconds, trained = summary.seconds, sum(p.numel() for p in student.parameters() if p.requires_grad)
            self._close_regularizers(context, fit, fit_spec, student)
            if strategy.merges and is_first_rank():
                merge_momentum(student, folder / FIT)
            student = finished(self._spec(start, fit, fit_spec), student)
            if start.student.start is not None and start.network is None and start.prepared is None:
                note = start_note(start.student, fit.classes, student.model)
            backbone = backbone or tensor_bytes(backbone_state(student.model, classifier_names(student.model)).values())
            if is_first_rank():
                data = self.task.data(context.data, fit.classes, context.seed)
                images = TrainingViews(student.input, replace(context, data=data))
                strategy.close(replace(fit, images=images), student)
            self._keep(context, fit, student)
        context.wait_for_ranks()  # the first one writes what all read
        about = {
            "seconds": seconds,
            "trained": trained,
            "peak": sum(part.kept for part in (previous.parts if previous else ())) + folder_bytes(folder),
            "backbone": backbone,
            "start": note,
            "carried": carried_bytes(folder / FIT) if strategy.carries and start.student is not None else 0,
        }
        if is_first_rank():
            write_atomic(folder / LEARNED, json.dumps(about).encode())
        return learned_task(strategy, fit, about)

    def load(self, context: RunContext, folder: Path) -> LearnedTask:
        previous = context.get(self.previous) if self.previous else None
        return restored(self.task, self.strategy, self.student, context.seed, folder, previous)

    def report(self, context: RunContext, output: LearnedTask) -> Iterable[Item]:
        if (log := output.folder / FIT / "log.csv").is_file():
            yield Curve(name=self.name, log=read_curves(log))
            yield from fit_notes(self.name, load_summary(output.folder / FIT))
        about = output.folder / LEARNED  # an untrained output has none
        if about.is_file() and (start := json.loads(about.read_text()).get("start")) is not None:
            yield Note(text=f"{self.name}: {start}")
        for text in self._strategy.notes(output.folder):
            yield Note(text=f"{self.name}: {text}")

    @property
    def _strategy(self) -> Strategy:
        assert self.strategy.component is not None
        return self.strategy.component(self.strategy)

    def _task_fit(self, context: RunContext, previous: LearnedTask | None, folder: Path) -> TaskFit:
        return task_fit_of(self.task, self._strategy, self.student, context.seed, folder, previous)

    def _within(self, context: RunContext, fit: TaskFit) -> RunContext:
        """The context with this task's data alone, and seeds that are keyed by its name."""
        data = self.task.data(context.data, fit.classes, context.seed)
        store = self._stored(context, fit)
        if store is not None and self.exemplars is not None:
            data = exemplars_alone(data, store)
        elif store is not None and self.memory is not None:
            data = with_memory(data, store, self.memory.batch_share)
        return replace(context, data=data, seed=fit.seed)

    def _stored(self, context: RunContext, fit: TaskFit) -> Store | None:
        """The memory that is trained on; None in the first task, and without one."""
        learned = fit.previous if self.exemplars is None else context.find(self.exemplars)
        if learned is None or learned.memory is None:
            return None
        store = Store.load(learned.memory)
        return store if len(store) else None

    def _scaled(self, context: RunContext, fit_spec: FitSpec) -> FitSpec:
        """The fit with as many updates as the learner took whose memory it is trained on."""
        if self.exemplars is None:
            return fit_spec
        steps, before = load_summary(context.get(self.exemplars).folder / FIT).steps, self.training
        epochs = max(1, -(-steps // before.updates(len(fit_spec.loader()))))
        augment = self._alone().alone(epochs / before.epochs)
        return replace(fit_spec, augment=augment, training=before.scaled(epochs))

    def _check_memory(self, context: RunContext) -> None:
        """Raise an error for a memory that is too small for the classes so far."""
        if self.memory is not None:
            known = context.find(self.previous) if self.previous else None
            capacity(self._memory, context.data, seen_classes(self.task, known), names_in(self.task, context.data))

    @property
    def _memory(self) -> Memory:
        assert self.memory is not None and self.memory.component is not None
        assert issubclass(self.memory.component, Memory)
        return self.memory.component(self.memory)

    def _keep(self, context: RunContext, fit: TaskFit, student: Student) -> None:
        """Write the memory after the task."""
        if self.memory is None:
            return
        store = keep(
            self._memory, context, self.task, self._stored(context, fit), student.network, fit.classes, self.augment
        )
        if is_first_rank():
            store.save(fit.folder / MEMORY)

    def _penalties(self, fit: TaskFit) -> dict[str, Regularizer]:
        """The regularizers, with their states after the task before."""
        known = fit.previous is not None and fit.previous.folder != Path()  # in the checks, nothing is written
        return build(self.regularizers, fit.previous.folder / REGULARIZERS if fit.previous and known else None)

    def _close_regularizers(self, context: RunContext, fit: TaskFit, fit_spec: FitSpec, student: Student) -> None:
        """Write the states of the regularizers after the task."""
        if not self.regularizers:
            return
        data = self.task.data(context.data, fit.classes, context.seed)
        penalties = {name: own for name, own in fit_spec.regularizers.items() if isinstance(own, Regularizer)}
        among = [objective.among for objective in self.objectives if isinstance(objective, CrossEntropy.Settings)]
        present = bool(among) and all(own == "present" for own in among)
        tensors = close(penalties, student, replace(context, data=data, seed=fit.seed), present)
        if is_first_rank():
            save(fit.folder, tensors)

    def _fit(self, fit: TaskFit, start: TaskStart, fit_spec: FitSpec) -> tuple[Student, FitSummary]:
        folder = fit.folder / FIT
        if start.prepared is not None and (start.prepared / PREPARED).is_file() and is_first_rank():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(start.prepared / PREPARED, folder / PREPARED)
        fit_spec.context.wait_for_ranks()
        student = prepare(self._spec(start, fit, fit_spec), fit_spec, folder, self.name, self.training.epochs)
        take_over(student, start, fit.classes)
        return student, fit_spec.fit(student, folder, self.name)

    def _fit_spec(self, within: RunContext, fit: TaskFit, compiled: bool = True) -> FitSpec:
        objectives = self.objectives
        settings = self.teacher
        if settings is not None and fit.previous is None:
            settings = without_previous(settings)
        momentum, penalties = None if settings is None else settings.momentum, self._penalties(fit)
        fit_spec = FitSpec(within, None, objectives, self.augment, self.training, regularizers=penalties)
        fit_spec = replace(fit_spec, momentum=momentum, validates=trains_head(self.objectives))
        if settings is None or not settings.frozen:
            objectives = tuple(o for o in objectives if not o.component.reads_frozen())  # type: ignore[union-attr]
            augment = self._alone() if momentum is None else self.augment
            return replace(fit_spec, objectives=objectives, augment=augment)
        if not compiled:
            settings = settings.model_copy(update={"compile": False})
        given = [network for ref in self.networks for network in within.get(ref).networks]
        networks, maps = with_previous(settings, given, fit, self.name, text_store(within))
        teacher = make_teacher(settings, objectives, networks, maps)
        return replace(fit_spec, teacher=teacher, cache=settings.cache)

    def _alone(self) -> AugmentSettings:
        return self.augment if self.teacher is None else self.augment.alone()

    def _spec(self, start: TaskStart, fit: TaskFit, fit_spec: FitSpec) -> StudentSpec:
        assert start.student is not None
        needs, _ = needs_of(fit_spec.objectives)
        return StudentSpec(start.student, fit.seed, len(fit.classes), needs, fit_spec.head, start.network)
