"""The contract of an objective: ``loss(student, teacher, batch) → scalar tensor`` with a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

import augment.base
from augment.base import Component, error_at
from distill.data.base import UNLABELED
from distill.models.features import Features, FeatureShapes
from distill.models.settings import ReusedHead
from distill.objectives.compare import require_teacher

__all__ = ["UNLABELED", "Objective", "Schedule", "Targets"]


@dataclass(frozen=True)
class Targets:
    """What is known of a batch's samples, beside what the two networks made of them."""

    labels: Tensor
    """[B] int64, ``UNLABELED`` where a sample has none."""
    index: Tensor | None = None
    """[B] int64, each sample's place in the training split: the key of a memory bank."""
    mixed_labels: Tensor | None = None
    """[B] int64, the labels of what was mixed in; None where the images are not mixed."""
    mix_lambda: float = 1.0
    """Part of the student's view that is the sample's own image; the rest belongs to ``mixed_labels``."""
    weights: Tensor | None = None
    """[B] factors of the samples' losses, without gradient; None: all 1. See ``Objective.weighs_samples``."""

    def indices(self) -> Tensor:
        """``index``. Raises ``ValueError`` where the batch does not have it."""
        if self.index is None:
            raise ValueError("this objective needs each sample's place in the training split, which the batch lacks")
        return self.index


class Schedule(augment.base.Settings):
    """When a term counts: a factor of its weight over training, in epochs (fractions allowed).

    0 before ``start``; then a linear rise to 1 over ``warmup``; then a linear way to ``final``, reached at the end;
    0 from ``until`` on.
    """

    start: float = Field(0.0, ge=0, description="epochs before the term counts")
    warmup: float = Field(0.0, ge=0, description="epochs of linear rise from there, 0 to 1")
    final: float = Field(1.0, ge=0, description="factor at the end, reached linearly after the warm-up")
    until: float | None = Field(
        None, gt=0, description="epoch from which it no longer counts; none: it counts to the end"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.until is not None and self.until < self.start + self.warmup:
            text = f"must not come before the end of the warm-up, {self.start + self.warmup:g}, but is {self.until:g}"
            raise error_at("until", text)
        return self

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The factor at the end of a step, so that the first one of a warm-up is not 0.

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
    teachers, a term that reads the teacher is built once per teacher (each with projectors of its own) and summed with
    the teachers' weights; with several views it is averaged over the pairs that the view policy declares.

    A subclass writes ``loss``; calling the module runs it with autocast off, so that every term computes in fp32. It
    averages over the batch such that its gradients, averaged over ranks as DDP does, are those of the whole batch. It
    stays attached to the student's graph even when a batch gives it nothing to do (no labeled sample, say): a zero,
    not a constant. No gradient reaches the teacher. A NaN that a network hands over comes out as NaN, which training
    watches for.

    A term's own parameters (projectors, temperatures, banks) are trained with the student and never exported.

    Class attributes:
        paper: where it comes from, in short; its docstring says more.
        needs: which fields of ``Features`` it reads, of ``{"logits", "pooled", "maps", "token"}``; the last one of the
            student only.
        reads_teacher: whether it needs a teacher at all.
        needs_index: whether it reads ``batch.index``; then ``remember`` is called before training.
        weighs_samples: whether it is a mean of losses that belong to one sample each, and multiplies them by
            ``batch.weights``. What a sample is compared with (negatives, a queue, a batch norm's statistics) is not
            weighed. An objective on relations among samples has no such losses: it refuses weights, and a config that
            asks for them (``training.curriculum``, ``teacher.weighting``) is refused before anything runs.
        sets_head: whether it decides what the student's head is; one term with one teacher can.
        no_weight_decay: names of its parameters that must not decay (temperatures, scales); norms and biases are
            excluded anyway.
    """

    class Settings(augment.base.Settings):
        type: str
        weight: float = Field(1.0, ge=0, description="factor of this term in the sum")
        schedule: Schedule = Field(Schedule(), description="how that factor changes over training")

        @property
        def needs_one_class(self) -> bool:
            """Whether an image must have one class, not two: refused together with mixup and cutmix."""
            return False

        def head(self, teacher: FeatureShapes) -> ReusedHead | None:
            """What the student's head is replaced by before anything is trained; None: it keeps its own."""
            return None

    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    reads_teacher: ClassVar[bool] = True
    needs_index: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = False
    sets_head: ClassVar[bool] = False
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        """Build projectors from the shapes that the two networks report; ``teacher`` is None without one.

        Raises:
            ValueError: the two cannot be compared, the text says which shapes met; or there is no teacher to read.
        """
        super().__init__()
        if self.reads_teacher:
            require_teacher(teacher)
        self.settings = settings

    def extra_repr(self) -> str:
        """The settings, for ``print``; the schedule where there is one."""
        unseen = {"type"} if self.settings.schedule != Schedule() else {"type", "schedule"}
        return ", ".join(f"{name}={value!r}" for name, value in self.settings if name not in unseen)

    def remember(self, labels: Tensor) -> None:
        """Make memory banks for the training split, whose labels [N] come in the order of ``batch.index``."""

    def after_step(self) -> None:
        """Act after an update of the weights."""

    def forward(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        """``loss`` in fp32, whatever autocast says.

        Args:
            student: outputs for the student's view, in whatever dtype the network computes.
            teacher: outputs for the teacher's view of the same samples; None without a teacher.
            batch: labels [B] and what else is known of the samples.

        Returns:
            A scalar with a graph.

        Raises:
            ValueError: the samples are weighed, and this objective cannot weigh them; or what ``loss`` raises.
        """
        if batch.weights is not None and not self.weighs_samples:
            text = "compares samples with each other, so it has no losses of single ones to weigh"
            raise ValueError(f"{self.settings.type} {text}")
        with torch.autocast(batch.labels.device.type, enabled=False):
            return self.loss(student, teacher, batch)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        """The unweighted term.

        Args:
            student: outputs for the student's view, in whatever dtype the network computes.
            teacher: outputs for the teacher's view of the same samples, without gradient; None without a teacher.
            batch: labels and places of the samples.

        Returns:
            A scalar with a graph.

        Raises:
            ValueError: the two outputs cannot be compared; the text names the shapes.
        """
        raise NotImplementedError
