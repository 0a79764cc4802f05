"""The specification of a fit without its student: teacher, objectives, views, training. All fits use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from augment.draws import Draws, sample_key
from augment.dual import AugmentSettings, DualAugment, chain_input
from distill.data.base import UNLABELED
from distill.data.loader import TrainLoader
from distill.data.order import Repeats
from distill.deltas.statistics import Normalization
from distill.models.settings import ReusedHead
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.teacher_settings import CacheSettings, WeightingSettings
from distill.objectives.base import Objective
from distill.run.context import RunContext
from distill.run.predict import predict_student, predict_teacher
from distill.run.stage import StageError
from distill.run.trial_fit import try_fit
from distill.training.cache_key import cache_key_of
from distill.training.cache_rows import RowLayout
from distill.training.evaluate import Predictions
from distill.training.fit import FitSummary, fit
from distill.training.layer_decay import layer_scales
from distill.training.loggers import check_loggers
from distill.training.meta import MetaStep
from distill.training.module import Distillation
from distill.training.quantization import Quantization
from distill.training.settings import TrainingSettings
from distill.training.step import DistillationStep
from distill.training.task_penalty import TaskPenalty
from distill.training.teacher_cache import TeacherCache
from distill.training.terms import Carried, Term, build_terms


@dataclass(frozen=True)
class FitSpec:
    """Everything that a fit needs except the student.

    Args:
        context: of the run.
        teacher: frozen; None: the student is trained on labels alone.
        objectives: the terms of the loss.
        augment: how the views are made.
        training: epochs, optimizer, schedule, guards.
        cache: keeps the teacher's outputs in a file; None: the teacher runs in every step.
        labeled_only: train on the samples with a visible label only.
        momentum: decay of the momentum network at the start and at the end; None: there is none. A fit makes its own,
            equal to its student.
        carried: name of a term → the state that it starts with, of an earlier fit (``load_carried``), for objectives
            with ``carry: stream``. None: new states.
        regularizers: name → penalty on moving away from the weights of earlier tasks, which the fit changes.
        validates: whether predictions are scored on the validation split; false where nothing trains the classifier.
        normalizations: whose batch-norm statistics the momentum network computes with (``teacher.ema``).
        momentum_state: the momentum network that it starts with, of an earlier fit (``load_momentum``), see
            ``MomentumNetwork.carry_on``. None: one equal to the student.
    """

    context: RunContext
    teacher: Teacher | None
    objectives: tuple[Objective.Settings, ...]
    augment: AugmentSettings
    training: TrainingSettings
    cache: CacheSettings | None = None
    labeled_only: bool = False
    momentum: tuple[float, float] | None = None
    carried: Carried | None = None
    regularizers: Mapping[str, TaskPenalty] = field(default_factory=dict)
    normalizations: tuple[Normalization, ...] = ()
    momentum_state: Mapping[str, Tensor] | None = None
    validates: bool = True

    def module(self, student: Student, loader: TrainLoader, name: str) -> Distillation:
        """The training step, with newly built objectives.

        Args:
            student: to train.
            loader: of the fit, for the number of steps in an epoch.
            name: of the fit, for errors.

        Returns:
            The step in a Lightning module, on the CPU.

        Raises:
            StageError: an objective cannot compare the student with the teacher.
        """
        teacher, seed = self.teacher, self.context.seed
        terms = self._terms(student, name)
        inputs = [*(teacher.inputs if teacher else ()), *([student.input] if self.momentum else ())]
        dual = DualAugment(self.augment, inputs, student.input, seed)
        part = self.context.data.subset("train")
        train = part.ids, torch.from_numpy(part.labels)
        repeats = loader.reader.repeats
        cache = open_cache(self.context, teacher, dual, self.training.epochs, self.cache, repeats) if teacher else None
        meta = meta_step(self.context, teacher.weighting) if teacher else None
        try:
            per_epoch = self.training.updates(len(loader))
            parts = train, cache, meta, self.momentum, self.regularizers, self.normalizations
            step = DistillationStep(student, teacher, terms, dual, self.training, per_epoch, *parts)
            if step.momentum is not None and self.momentum_state is not None:
                step.momentum.carry_on(self.momentum_state)
        except ValueError as error:
            raise StageError(f"{name}: {error}") from error
        return Distillation(step)

    def check(self, student: Student, name: str) -> None:
        """Raise ``StageError`` if the fit of this student would fail; in a trial, one step is made."""
        self._terms(student, name)
        if self.teacher is not None and self.cache is not None:
            RowLayout(self.teacher.shapes, 1, self.cache)
        check_loggers(self.training.loggers)
        if self.training.quantize is not None:
            try:
                Quantization(student, self.training.quantize, self.training.epochs, 1)
            except ValueError as error:
                raise StageError(f"{name}: {error}") from error
        if (decay := self.training.optimizer.layer_decay) is not None:
            try:
                layer_scales(student.model, decay)
            except ValueError as error:
                raise StageError(f"{name}: {error}") from error
        self._scored(student, name)
        self._test(student, name)
        if self.teacher is not None:
            meta_step(self.context, self.teacher.weighting)
        if self.context.trial is not None:
            try_fit(self, student, self.context.trial, name)

    def _terms(self, student: Student, name: str) -> list[Term]:
        torch.manual_seed(self.context.seed)
        shapes, maps = (self.teacher.shapes, self.teacher.maps) if self.teacher else ([], None)
        try:
            return build_terms(self.objectives, student.shapes, shapes, maps, self.carried)
        except ValueError as error:
            raise StageError(f"{name}: {error}") from error

    @property
    def head(self) -> ReusedHead | None:
        """The teacher's head, if an objective gives it to the student; else None."""
        if self.teacher is None:
            return None
        heads = [settings.head(self.teacher.shapes[0]) for settings in self.objectives]
        return next((head for head in heads if head is not None), None)

    def loader(self) -> TrainLoader:
        """The training batches of this rank."""
        return self.context.data.train_loader(labeled_only=self.labeled_only)

    def fit(self, student: Student, folder: Path, name: str) -> FitSummary:
        """Train the student in place. A fit that is finished in ``folder`` is loaded; an interrupted one is resumed.

        Args:
            student: receives the trained weights.
            folder: for checkpoints, log and result.
            name: of the fit, for console and errors.

        Returns:
            Summary of the finished fit.
        """
        context, teacher = self.context, self.teacher
        loader = self.loader()
        module = self.module(student, loader, name)
        if module.step.cache is not None:
            context.print(module.step.cache.describe())
        has_val, comparable = self._scored(student, name)
        summary = fit(
            module,
            loader,
            (lambda: predict_student(context, student, "val")) if has_val else None,
            (lambda: predict_teacher(context, teacher, "val")) if has_val and comparable and teacher else None,
            folder,
            name,
            context.stop,
            context.console,
            self._test(student, name),
        )
        return summary

    def _scored(self, student: Student, name: str) -> tuple[bool, bool]:
        """Whether there is a validation split, and whether the teacher predicts the student's classes."""
        has_val = self.validates and self.context.data.has_split("val")
        comparable = self.teacher is not None and self.teacher.has_classes(student.shapes.classes)
        scored = has_val and (comparable or bool((self.context.data.subset("val").labels != UNLABELED).any()))
        if not scored and (self.training.early_stop or self.training.keep == "best"):
            key = "training.early_stop" if self.training.early_stop else "training.keep: best"
            raise StageError(
                f"{name}: {key} needs a score: labels in the validation split, or a teacher of the same classes"
            )
        return has_val, comparable

    def _test(self, student: Student, name: str) -> Callable[[], Predictions] | None:
        """Makes the student's predictions for the test split, if ``training.test_every`` is set; else None."""
        if self.training.test_every is None:
            return None
        data = self.context.data
        if not data.has_split("test") or not (data.subset("test").labels != UNLABELED).any():
            raise StageError(f"{name}: training.test_every needs a test split with labels")
        return lambda: predict_student(self.context, student, "test")

    def for_warm_up(self, epochs: int, lr: float) -> FitSpec:
        """The same fit with ``epochs`` epochs and the constant learning rate ``lr``.

        It has no curriculum, quantization, moving average of the weights, early stopping, choice of the best epoch,
        tests, or regularizers.
        """
        schedule = self.training.schedule
        short = {"type": "constant", "warmup": min(schedule.warmup, epochs / 2), "milestones": ()}
        return replace(
            self,
            regularizers={},
            training=self.training.model_copy(
                update={
                    "epochs": epochs,
                    "schedule": schedule.model_copy(update=short),
                    "optimizer": self.training.optimizer.model_copy(update={"lr": lr}),
                    "curriculum": None,
                    "quantize": None,
                    "ema": None,
                    "early_stop": None,
                    "keep": "last",
                    "validate_every": epochs,
                    "test_every": None,
                }
            ),
        )


def meta_step(context: RunContext, weighting: WeightingSettings) -> MetaStep | None:
    """The meta step that learns the weights of the teacher's networks; None unless ``weighting`` is learned.

    Raises:
        StageError: ``agreement`` without labels in training, or ``learned`` without labels in the validation split.
    """
    if weighting.type == "agreement" and not context.data.labeled_count:
        raise StageError("teacher.weighting: agreement needs labels, and no training sample has one")
    if weighting.type != "learned":
        return None
    labels = context.data.subset("val").labels if context.data.has_split("val") else np.empty(0)
    places = np.flatnonzero(labels != UNLABELED)
    if len(places) < 2:
        raise StageError("teacher.weighting: learned needs at least two labeled images in the validation split")
    keys = torch.tensor([sample_key(context.data.subset("val").ids[place]) for place in places])
    order = Draws(context.seed, 0, "meta", keys).bits(0).argsort(stable=True)[: weighting.images]
    batch = context.data.eval_batch("val", places[order].tolist())
    return MetaStep(weighting, chain_input(batch.images), batch.labels)


def open_cache(
    context: RunContext,
    teacher: Teacher,
    dual: DualAugment,
    epochs: int,
    settings: CacheSettings | None,
    repeats: Repeats,
) -> TeacherCache | None:
    """The cache of the teacher's outputs.

    Args:
        context: of the run; the caches of all runs are in its ``root``.
        teacher: whose outputs are kept.
        dual: makes the teacher's views.
        epochs: length of the training that reads the cache.
        settings: which outputs to keep; None: no cache.
        repeats: the samples that come again in an epoch of that training.

    Returns:
        The open cache, or None.

    Raises:
        CacheError: the cache cannot be used or written.
    """
    if settings is None:
        return None
    return TeacherCache(
        context.root / "teachers",
        cache_key_of(teacher, dual, context.data),
        RowLayout(teacher.shapes, len(dual.view_plan.teacher), settings),
        context.data.subset("train").ids,
        epochs,
        by_batch=dual.mix is not None,
        write=settings.write,
        repeats=repeats,
    )
