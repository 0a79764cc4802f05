"""The base class of objectives: ``loss(student, teacher, batch) → scalar tensor`` with a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

import augment.base
from augment.base import Component, error_at
from augment.policy import PairKind, ViewPlan
from distill.data.base import UNLABELED
from distill.models.features import Features, FeatureShapes
from distill.models.settings import ReusedHead
from distill.objectives.compare import require_teacher

__all__ = ["UNLABELED", "Objective", "Schedule", "Targets"]


@dataclass(frozen=True)
class Targets:
    """Labels and other data of a batch's samples, besides the networks' outputs."""

    labels: Tensor
    """[B] int64, ``UNLABELED`` for samples without a label."""
    index: Tensor | None = None
    """[B] int64, each sample's index in the training split, for memory banks."""
    mixed_labels: Tensor | None = None
    """[B] int64, labels of the images that were mixed in; None if images are not mixed."""
    mix_lambda: float = 1.0
    """Fraction of the sample's own image in the student's view; the rest has ``mixed_labels``."""
    weights: Tensor | None = None
    """[B] factors of the samples' losses, without gradient; None: all 1. See ``Objective.weighs_samples``."""
    is_memory: Tensor | None = None
    """[B] bool, which samples come from the memory of a stream of tasks, whose data fills it; None: no sample does."""
    stored_logits: Tensor | None = None
    """[B, K] the student's logits of a memory sample when it was stored, also filled by the stream's data; rows of
    other samples are not read. None: the memory has none."""
    domains: Tensor | None = None
    """[B] int64, 0 for a sample of the source domain, 1 for one of the target domain, which has no label; None: there
    is no target domain."""

    def indices(self) -> Tensor:
        """``index``. Raises ``ValueError`` if the batch has none."""
        if self.index is None:
            raise ValueError("this objective needs each sample's index in the training split, which the batch lacks")
        return self.index


class Schedule(augment.base.Settings):
    """A factor of a term's weight over training, in epochs (fractions allowed).

    It is 0 before ``start``, rises linearly to 1 over ``warmup``, changes linearly to ``final`` at the end, and is 0
    from ``until`` on.
    """

    start: float = Field(0.0, ge=0, description="epochs for which the factor is 0")
    warmup: float = Field(0.0, ge=0, description="epochs over which the factor then rises linearly from 0 to 1")
    final: float = Field(
        1.0, ge=0, description="factor at the end; the factor changes linearly to it after the warm-up"
    )
    until: float | None = Field(
        None, gt=0, description="epoch from which the factor is 0; none: not before training ends"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.until is not None and self.until < self.start + self.warmup:
            text = f"must not come before the end of the warm-up, {self.start + self.warmup:g}, but is {self.until:g}"
            raise error_at("until", text)
        return self

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The factor at the end of a step, so that it is not 0 in the first step of a warm-up.

        Args:
            step: number of the update, from 0.
            steps_per_epoch: updates in an epoch.
            epochs: length of the whole training.

        Returns:
            The factor, at least 0.
        """
        epoch, end = step / steps_per_epoch, epochs if self.until is None else min(epochs, self.until)
        if epoch < self.start or epoch >= end:
            return 0.0
        since = epoch + 1 / steps_per_epoch - self.start
        if since < self.warmup:
            return since / self.warmup
        rest = end - self.start - self.warmup
        return 1 + (self.final - 1) * min(1.0, (since - self.warmup) / rest) if rest > 0 else 1.0


class Objective(nn.Module, Component):
    """One term of the loss.

    The training step sums ``weight · forward(...)`` over all terms and logs each under its name. With several
    teachers, a term that reads the teacher is built once per teacher (each with its own projectors) and summed with
    the teachers' weights; with several views it is averaged over the pairs that the view policy declares.

    A subclass implements ``loss``. Calling the module computes it with autocast off, in fp32. Requirements on ``loss``:

    - its mean over the batch is such that its gradients, averaged over ranks as by DDP, are those of the whole batch;
    - it has a graph to the student for every batch: without a labeled sample, for example, it is a zero with a graph;
    - it sends no gradient to the teacher;
    - a NaN in a network's outputs gives a NaN, which training detects.

    A term's own parameters (projectors, temperatures, banks) are trained with the student and never exported. They and
    its buffers are in every checkpoint, so a resumed fit is exact. A later fit starts with new ones, unless the
    objective has the setting ``carry: stream``, see :class:`distill.objectives.projector.CarrySettings`.

    Class attributes:
        paper: short citation.
        needs: which fields of ``Features`` it reads, of ``{"logits", "pooled", "maps", "token"}``; ``token`` is read of
            the student only.
        reads_teacher: whether it reads a teacher's outputs.
        reads_momentum: whether this teacher is the momentum network (``teacher.networks: [{model: momentum}]``).
        needs_labels: whether it learns nothing from samples without a label.
        view_pairs: which pairs of a teacher's and a student's view it compares: ``all`` of the policy, those of the
            ``same`` view, or ``cross``: those of two different views.
        reads_views: whether it gets the outputs for all views of a batch in one call; see
            :class:`distill.objectives.views.ViewsObjective`.
        needs_index: whether it reads ``batch.index``.
        weighs_samples: whether it is a mean of one loss per sample, which it multiplies by ``batch.weights``. What a
            sample is compared with (negatives, a queue, a batch norm's statistics) is not weighted. An objective on
            relations among samples has no loss per sample; it raises an error for weights, and a config that sets them
            (``training.curriculum``, ``teacher.weighting``) is refused before training.
        domain: which samples it reads of a batch of two domains: ``all``; the unlabeled ``target`` (all samples, where
            there is one domain); or ``both``, which it compares, so that it needs ``data.target``.
        reads_memory: whether it tells samples of a memory from those of the task, and so needs one.
        sets_head: whether it replaces the student's head; only one term, with one teacher, may do so.
        no_weight_decay: names of its parameters without weight decay (temperatures, scales), besides norms and
            biases.
    """

    class Settings(augment.base.Settings):
        type: str
        weight: float = Field(1.0, ge=0, description="factor of this term in the sum")
        schedule: Schedule = Field(Schedule(), description="how that factor changes over training")

        @property
        def needs_one_class(self) -> bool:
            """Whether it needs images with one class each, so that mixup and cutmix are refused."""
            return False

        def head(self, teacher: FeatureShapes) -> ReusedHead | None:
            """The head that replaces the student's before training; None: the student keeps its own."""
            return None

    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    reads_teacher: ClassVar[bool] = True
    reads_momentum: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = False
    view_pairs: ClassVar[PairKind] = "all"
    reads_views: ClassVar[bool] = False
    needs_index: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = False
    domain: ClassVar[Literal["all", "target", "both"]] = "all"
    reads_memory: ClassVar[bool] = False
    sets_head: ClassVar[bool] = False
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        """Create the term's parameters for two networks.

        Args:
            settings: of the objective.
            student: shapes of the student's outputs.
            teacher: shapes of the teacher's outputs; None without a teacher.

        Raises:
            ValueError: the outputs cannot be compared (the text gives their shapes), or a teacher is needed.
        """
        super().__init__()
        if self.reads_teacher:
            require_teacher(teacher)
        self.settings = settings

    def extra_repr(self) -> str:
        """The settings, for ``print``; the schedule where there is one."""
        hidden = {"type"} if self.settings.schedule != Schedule() else {"type", "schedule"}
        return ", ".join(f"{name}={value!r}" for name, value in self.settings if name not in hidden)

    def remember(self, labels: Tensor) -> None:
        """Create memory banks, or count classes; called once before training, if the training split is known.

        Args:
            labels: [N] of the training split, in the order of ``batch.index``.
        """

    def after_step(self) -> None:
        """Called after every update of the weights."""

    def follow(self, decay: float) -> None:
        """Update copies of own modules that follow them as the momentum network follows the student.

        Called after every update of the weights, if there is a momentum network.

        Args:
            decay: of this update, in [0, 1].
        """

    def connect(self, others: Mapping[str, Objective]) -> None:
        """Prepare for a fit, maybe with a module of another objective of the same loss.

        Called once before training, after states of an earlier fit are loaded; the checkpoint of a resumed fit is
        loaded later.

        Args:
            others: name of a term that has one module → its objective.

        Raises:
            ValueError: the other objective does not exist, or cannot be used.
        """

    @classmethod
    def reads_frozen(cls) -> bool:
        """Whether it reads a teacher other than the momentum network."""
        return cls.reads_teacher and not cls.reads_momentum

    @classmethod
    def check_views(cls, name: str, plan: ViewPlan, policy: str) -> None:
        """Check that a view policy makes the views that the objective compares.

        Args:
            name: of the objective, for the error.
            plan: of the policy, with a teacher's views.
            policy: name of the policy, for the error.

        Raises:
            ValueError: it does not.
        """
        if cls.reads_teacher and not plan.pairs_of(cls.view_pairs):
            wanted = {"same": "the same view of teacher and student", "cross": "two different views"}[cls.view_pairs]
            others = {"same": "identical, both_to_both", "cross": "both_to_both, independent"}[cls.view_pairs]
            raise ValueError(f"{name} compares {wanted}, and policy {policy!r} has none; take one of {others}")
        if cls.reads_views and not cls.reads_teacher and len(plan.student) < 2:
            text = f"{name} compares two views of the student, and policy {policy!r} has one; take both_to_both"
            raise ValueError(text)

    def forward(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        """``loss``, computed with autocast off.

        Args:
            student: outputs for the student's view, in the dtype that the network computes in.
            teacher: outputs for the teacher's view of the same samples; None without a teacher.
            batch: labels [B] and other data of the samples.

        Returns:
            A scalar with a graph.

        Raises:
            ValueError: the batch has weights, but the objective has no loss per sample; or raised by ``loss``.
        """
        if batch.weights is not None and not self.weighs_samples:
            text = "compares samples with each other, so it has no loss per sample to weight"
            raise ValueError(f"{self.settings.type} {text}")
        with torch.autocast(batch.labels.device.type, enabled=False):
            return self.loss(student, teacher, batch)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        """The unweighted term.

        Args:
            student: outputs for the student's view, in the dtype that the network computes in.
            teacher: outputs for the teacher's view of the same samples, without gradient; None without a teacher.
            batch: labels [B] and other data of the samples.

        Returns:
            A scalar with a graph.

        Raises:
            ValueError: the outputs cannot be compared; the text gives their shapes.
        """
        raise NotImplementedError
