"""The pure step: a batch of images becomes a loss and its terms. It knows no training loop and imports no Lightning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from augment.dual import DualAugment
from augment.views import ViewPixels, Views
from distill.data.base import UNLABELED
from distill.data.positions import Positions
from distill.deltas.attach import penalty
from distill.models.features import Features
from distill.models.shared_trunk import SharedTrunk
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.base import Targets
from distill.training.curriculum import Curriculum
from distill.training.meta import MetaStep
from distill.training.settings import TrainingSettings
from distill.training.side_stream import SideStream
from distill.training.teacher_cache import TeacherCache
from distill.training.teacher_weights import TeacherWeights
from distill.training.terms import Term
from distill.training.timer import StepTimer


@dataclass(frozen=True)
class StepOutput:
    """The result of one step."""

    loss: Tensor
    """Scalar with a graph: the weighted sum of the terms, and the penalty of the deltas."""
    terms: Tensor
    """[T] the unweighted terms, detached, in the order of ``DistillationStep.term_names``."""


class DistillationStep(nn.Module):
    """Loss of a batch, for a training loop of any kind. Without a teacher it is plain supervised training.

    ``loss = Σ_t w_t(step) · term_t + penalty(deltas)``, each term averaged over the view pairs and weighed over the
    teacher's networks. In a loop of your own: call the step, ``loss.backward()``, update, then :meth:`after_update`.
    ``distill.create_step`` builds it from the names of the objectives. Autocast, clipping and the learning rate are the
    loop's; a trunk that several networks have in common is computed once only in ``distill train``.

    Shapes: B batch, H and W of the images, T terms (the penalty of the deltas is the last, where there is one).

    Args:
        student: what is trained.
        teacher: frozen, or None.
        terms: the loss; see ``build_terms``.
        augment: makes the views.
        settings: number of epochs, and the curriculum; nothing else of it is read here.
        steps_per_epoch: length of the schedule's epoch, in batches.
        train: names and labels [N] of the training samples, for terms with a memory bank.
        cache: the teacher's outputs; for a batch that it holds, the teacher does not run.
        meta: learns the weights of the teacher's networks, where those are learned.

    Raises:
        ValueError: the curriculum cannot compare the student with the teacher.

    Example:
        >>> import torch, distill
        >>> _ = torch.manual_seed(0)
        >>> student = distill.create_student("embedded:tf_efficientnet_lite0", "bias", size=32)
        >>> teacher = distill.create_teacher("embedded:tf_efficientnet_lite1", size=32)
        >>> augment = distill.create_augment(student=student, teacher=teacher, recipe="weak")
        >>> step = distill.create_step(student, teacher, ["ce", "kd"], augment, steps_per_epoch=10)
        >>> optimizer = torch.optim.SGD([p for p in step.parameters() if p.requires_grad], lr=0.01)
        >>> images, ids = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8), torch.tensor([11, 12])
        >>> output = step(images, ids, torch.tensor([3, 7]), epoch=0, step=0)
        >>> output.loss.backward()
        >>> optimizer.step()
        >>> step.after_update(0)
        >>> step.term_names, output.terms.shape
        (['ce', 'kd'], torch.Size([2]))
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher | None,
        terms: Sequence[Term],
        augment: DualAugment,
        settings: TrainingSettings,
        steps_per_epoch: int,
        train: tuple[Sequence[str], Tensor] | None = None,
        cache: TeacherCache | None = None,
        meta: MetaStep | None = None,
    ):
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]
        self._positions: Positions | None = None
        if train is not None and any(term.needs_index for term in terms):
            ids, labels = train
            self._positions = Positions(ids)
            for term in terms:
                term.remember(labels)
        self.teacher_weights = TeacherWeights(teacher.weighting, teacher.weights, teacher.maps) if teacher else None
        self.curriculum: Curriculum | None = None
        if settings.curriculum and teacher:
            self.curriculum = Curriculum(settings.curriculum, student.shapes, teacher.shapes, teacher.maps)
        self.meta = meta
        self.augment = augment
        self.cache = cache
        self.side = SideStream()
        self.trunk = SharedTrunk()
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.clock = StepTimer(torch.device("cpu"))
        self.penalized = penalty(student.sites) is not None
        self.term_names = [term.name for term in terms] + ["penalty"] * self.penalized

    def forward(
        self, images: Tensor | ViewPixels, ids: Tensor, labels: Tensor | None = None, *, epoch: int, step: int
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            images: [B, 3, H, W] uint8 RGB (or floats in [0, 1]) on the device; or what ``augment.render`` made of them.
            ids: [B] int64 on the CPU, which tell the samples apart; see :func:`augment.draws.sample_key`.
            labels: [B] int64 on the device, ``UNLABELED`` (-1) where a sample has none; None: no sample has one.
            epoch: counted from 0; the draws of the views depend on it.
            step: number of the step in the whole training, counted from 0; the schedules of terms depend on it.

        Returns:
            The loss, a scalar with a graph, and the terms [T].

        Raises:
            ValueError: shapes that do not fit, or an id that is not of ``train`` where a term has a memory bank.
        """
        if labels is None:
            device = next(iter(images.values())).device if isinstance(images, Mapping) else images.device
            labels = torch.full(ids.shape, UNLABELED, device=device)
        elif labels.shape != ids.shape:
            raise ValueError(f"labels must be [{len(ids)}], one for each id, not {list(labels.shape)}")
        with self.trunk:
            views, teachers = self._views_and_outputs(images, ids, labels.device, epoch)
            self.clock.start("student")
            students = [self.student(view) for view in views.student]
        self.side.join(tensor for network in teachers for seen in network for tensor in seen.tensors())
        targets = Targets(labels)
        if self._positions is not None:
            targets = replace(targets, index=self._positions(ids).to(labels.device, non_blocking=True))
        batches = [targets] * len(students)
        if (mix := views.mix) is not None:
            mixed = replace(targets, mixed_labels=labels[mix.partner])
            batches = [replace(mixed, mix_lambda=mix_lambda) for mix_lambda in mix.student]
        teacher_weights = self.teacher_weights(teachers, batches[0]) if self.teacher_weights is not None else None
        if self.curriculum is not None and teacher_weights is not None:
            strength = self.curriculum.strength(step, self.steps_per_epoch)
            if strength > 0:
                batches = self.curriculum(strength, students, teachers, views.pairs, batches, teacher_weights)
        by_teacher = [term(students, teachers, views.pairs, batches, teacher_weights) for term in self.terms]
        values = [term.total(losses, teacher_weights) for term, losses in zip(self.terms, by_teacher, strict=True)]
        if (extra := penalty(self.student.sites)) is not None:
            values.append(extra)
        weights = [term.weight(step, self.steps_per_epoch, self.settings.epochs) for term in self.terms] + [1.0] * (
            extra is not None
        )
        if self.meta is not None and self.teacher_weights is not None and self.meta.due(step):
            read = [w * losses for w, losses, term in zip(weights, by_teacher, self.terms) if term.reads_teacher]
            losses = torch.stack(read).sum(0)
            self.teacher_weights.learn(self.meta(step, self.student, losses, self.teacher_weights.preference))
        loss = torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum()
        return StepOutput(loss, torch.stack(values).detach())

    def after_update(self, step: int) -> None:
        """Deltas and terms act after the update of a step; ``step`` is its number, counted from 0."""
        for term in self.terms:
            term.after_step()
        self.student.after_step(step + 1, self.settings.epochs * self.steps_per_epoch)

    def _views_and_outputs(
        self, images: Tensor | ViewPixels, ids: Tensor, device: torch.device, epoch: int
    ) -> tuple[Views, list[list[Features]]]:
        """The views of a batch, and the teacher's outputs for its own, from the cache if it holds them."""
        cached = None
        if self.cache is not None:
            with self.clock.span("teacher"):
                cached = self.cache.find(ids, epoch)
        known = cached is not None and cached.complete
        with self.clock.span("augment"):
            views = self.augment(images, ids, epoch, teacher=not known)
        if self.teacher is None:
            return views, []
        if self.cache is not None and cached is not None and known:
            with self.clock.span("teacher"):
                return views, self.cache.features(cached, device)
        with self.side.beside([*chain(*views.teacher)]), self.clock.span("teacher"):
            outputs = self.teacher(views.teacher)
            if self.cache is not None and cached is not None:
                outputs = self.cache.keep(cached, outputs)
        return views, outputs
