"""The training step as a pure function of a batch: images, ids and labels → loss and terms, without Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from augment.dual import DualAugment
from augment.policy import plan_views
from augment.views import ViewPixels, Views
from distill.data.base import UNLABELED
from distill.data.positions import Positions
from distill.deltas.attach import penalty
from distill.deltas.statistics import Normalization
from distill.models.features import Features
from distill.models.normalization import forward_by_domain, statistics_of
from distill.models.shared_trunk import SharedTrunk
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.base import Targets
from distill.training.curriculum import Curriculum
from distill.training.meta import MetaStep
from distill.training.momentum import MomentumNetwork
from distill.training.quantization import Quantization
from distill.training.settings import TrainingSettings
from distill.training.side_stream import SideStream
from distill.training.task_penalty import TaskPenalty, trained_parameters
from distill.training.teacher_cache import TeacherCache
from distill.training.teacher_weights import TeacherWeights
from distill.training.terms import Term
from distill.training.timer import StepTimer


@dataclass(frozen=True)
class StepOutput:
    """The result of one step."""

    loss: Tensor
    """Scalar with a graph: the weighted sum of the terms plus the penalties of regularizers and deltas."""
    terms: Tensor
    """[T] the unweighted terms, detached, in the order of ``DistillationStep.term_names``."""


class DistillationStep(nn.Module):
    """Computes the loss of a batch, for any training loop. Without a teacher this is supervised training.

    ``loss = Σ_t w_t(step) · term_t + penalty(deltas)``; each term is averaged over the pairs of views and weighted over
    the teacher's networks. In your own loop, call the step, ``loss.backward()``, ``optimizer.step()``, then
    :meth:`after_update`. ``distill.create_step`` builds it from the names of objectives. The loop is responsible for
    autocast, clipping and the learning rate. Only ``distill train`` computes layers that networks share once.

    Shapes: B batch, H and W of the images, T terms (the last is the penalty of the deltas, if they have one).

    Args:
        student: is trained.
        teacher: frozen, or None.
        terms: the loss; see ``build_terms``.
        augment: makes the views.
        settings: the step reads the number of epochs and the curriculum.
        steps_per_epoch: number of updates in an epoch, for the schedules.
        train: names and labels [N] of the training samples, for terms with a memory bank or class weights.
        cache: of the teacher's outputs; the teacher does not run for a batch that the cache holds.
        meta: learns the weights of the teacher's networks, if ``teacher.weighting`` is learned.
        momentum: decay at the start and at the end of the momentum network, for terms that read it (``byol``,
            ``moco``); ``augment`` makes its views as those of a last network of the teacher with the student's input.
        regularizers: name → penalty on moving away from the weights of earlier tasks.
        normalizations: whose batch-norm statistics the momentum network computes with, see :class:`MomentumNetwork`.

    Raises:
        ValueError: the curriculum, or the weighting of the teacher's networks, reads logits that a network lacks, the
            student cannot be trained under the rounding of ``settings.quantize``, a term reads the momentum network and
            there is none, or ``augment`` lacks the views that a term compares.

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
        momentum: tuple[float, float] | None = None,
        regularizers: Mapping[str, TaskPenalty] | None = None,
        normalizations: Sequence[Normalization] = (),
    ):
        super().__init__()
        self.student = student
        self._by_domain = [own for own in statistics_of(student.model) if own.settings.source == "own"]
        self.teacher = teacher
        self.momentum = _momentum_network(student, terms, momentum, normalizations)
        inputs = [*(teacher.inputs if teacher else ()), *([student.input] if self.momentum else ())]
        if self.momentum is not None and [*augment.teachers] != inputs:
            text = f"of inputs {inputs}, the last of them the momentum network's, not {[*augment.teachers]}"
            raise ValueError(f"augment must make views for teachers {text}")
        plan = plan_views(augment.settings, augment.student)
        for term in terms:
            term.check_views(plan, augment.settings.policy)
        self.terms: Sequence[Term] = nn.ModuleList(terms)  # type: ignore[assignment]
        self._positions: Positions | None = None
        if train is not None:
            ids, labels = train
            if any(term.needs_index for term in terms):
                self._positions = Positions(ids)
            for term in terms:
                term.remember(labels)
        self.teacher_weights: TeacherWeights | None = None
        if teacher is not None:
            self.teacher_weights = TeacherWeights(teacher.weighting, teacher.weights, teacher.maps, teacher.shapes)
        self.curriculum: Curriculum | None = None
        if settings.curriculum and teacher:
            self.curriculum = Curriculum(settings.curriculum, student.shapes, teacher.shapes, teacher.maps)
        self.quantization: Quantization | None = None
        if settings.quantize is not None:
            self.quantization = Quantization(student, settings.quantize, settings.epochs, steps_per_epoch)
        self.meta = meta
        self.augment = augment
        self.cache = cache
        self.side = SideStream()
        self.trunk = SharedTrunk()
        self.settings = settings
        self.steps_per_epoch = steps_per_epoch
        self.clock = StepTimer(torch.device("cpu"))
        self.penalized = penalty(student.sites) is not None
        self.regularizers = dict(regularizers or {})
        self._gradients: dict[str, Tensor] | None = None
        self.term_names = [*(term.name for term in terms), *self.regularizers, *["penalty"] * self.penalized]
        self.watch_parameters()

    def extra_repr(self) -> str:
        return f"steps_per_epoch={self.steps_per_epoch}, epochs={self.settings.epochs}"

    def forward(
        self,
        images: Tensor | ViewPixels,
        ids: Tensor,
        labels: Tensor | None = None,
        *,
        epoch: int,
        step: int,
        first_of_update: bool = True,
        is_memory: Tensor | None = None,
        stored_logits: Tensor | None = None,
        view_keys: Tensor | None = None,
        domains: Tensor | None = None,
    ) -> StepOutput:
        """The loss of a batch.

        Args:
            images: [B, 3, H, W] uint8 RGB (or floats in [0, 1]) on the device, or the output of ``augment.render``.
            ids: [B] int64 on the CPU, unique for each sample; see :func:`augment.draws.sample_key`.
            labels: [B] int64 on the device, ``UNLABELED`` (-1) where a sample has none; None: no sample has one.
            epoch: counted from 0; the random draws of the views depend on it.
            step: number of the update in the training, counted from 0; the schedules of terms depend on it.
            first_of_update: False for a further batch whose gradients are added to those of the same update: the meta
                step is made once for each update.
            is_memory: [B] bool on the device, which samples come from a memory; see :class:`Targets`.
            stored_logits: [B, K] on the device, logits that the memory samples were stored with.
            view_keys: [B] int64 on the CPU, stored views, see :meth:`augment.dual.DualAugment.forward`.
            domains: [B] int64 on the CPU, 0 for a sample of the source domain, 1 for one of the target; None: there is
                one domain.

        Returns:
            The loss, a scalar with a graph, and the terms [T].

        Raises:
            ValueError: labels and ids differ in length, or a term has a memory bank and an id is not in ``train``.
        """
        if labels is None:
            device = next(iter(images.values())).device if isinstance(images, Mapping) else images.device
            labels = torch.full(ids.shape, UNLABELED, device=device)
        elif labels.shape != ids.shape:
            raise ValueError(f"labels must be [{len(ids)}], one for each id, not {list(labels.shape)}")
        student, shared = self._student_at(step)
        with shared:
            views, teachers, momentum = self._views_and_outputs(images, ids, labels.device, epoch, view_keys, domains)
            self.clock.start("student")
            if domains is None or not self._by_domain:
                students = [student(view) for view in views.student]
            else:
                students = [forward_by_domain(student, self._by_domain, view, domains) for view in views.student]
        self.side.join(tensor for network in teachers for seen in network for tensor in seen.tensors())
        targets = Targets(labels, is_memory=is_memory, stored_logits=stored_logits)
        if domains is not None:
            targets = replace(targets, domains=domains.to(labels.device, non_blocking=True))
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
        by_teacher = [
            term(students, [momentum], self._pairs(term, views), batches)
            if term.reads_momentum
            else term(students, teachers, self._pairs(term, views), batches, teacher_weights)
            for term in self.terms
        ]
        values = [term.total(losses, teacher_weights) for term, losses in zip(self.terms, by_teacher, strict=True)]
        values += [regularizer.penalty() for regularizer in self.regularizers.values()]
        if (extra := penalty(self.student.sites)) is not None:
            values.append(extra)
        weights = [term.weight(step, self.steps_per_epoch, self.settings.epochs) for term in self.terms]
        weights += [1.0] * (len(values) - len(weights))
        if self.meta is not None and self.teacher_weights is not None and first_of_update and self.meta.due(step):
            reading = [term.reads_teacher and not term.reads_momentum for term in self.terms]
            read = [w * losses for w, losses, reads in zip(weights, by_teacher, reading) if reads]
            losses = torch.stack(read).sum(0)
            self.teacher_weights.learn(self.meta(step, self.student, losses, self.teacher_weights.preference))
        loss = torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum()
        return StepOutput(loss, torch.stack(values).detach())

    def after_update(self, step: int) -> None:
        """Run the hooks of deltas and terms that follow an update; ``step`` is its number, counted from 0."""
        for term in self.terms:
            term.after_step()
        for regularizer in self.regularizers.values():
            regularizer.after_step(self._gradients)
        steps = self.settings.epochs * self.steps_per_epoch
        self.student.after_step(step + 1, steps)
        if self.quantization is not None:
            self.quantization.after_update(step)
        if self.momentum is not None:
            decay = self.momentum.decay_at(step, steps)
            self.momentum.follow(decay)
            for term in self.terms:
                term.follow(decay)

    def _student_at(self, step: int) -> tuple[Callable[[Tensor], Features], SharedTrunk]:
        """The student, quantized if this update is, and the layers that it shares with the teacher."""
        if self.quantization is None or not self.quantization.is_on(step):
            return self.student, self.trunk
        # What a rounded student computes in frozen layers is not what a teacher with the same weights computes.
        shared = SharedTrunk() if self.quantization.settings.computes else self.trunk
        return partial(self.quantization, self.student, step=step), shared

    def _pairs(self, term: Term, views: Views) -> tuple[tuple[int, int], ...]:
        """The (teacher's view, student's view) pairs that a term compares."""
        return views.pairs if term.view_pairs == "all" else self.augment.view_plan.pairs_of(term.view_pairs)

    def watch_parameters(self) -> None:
        """Give the regularizers the trained parameters, on their present device."""
        for regularizer in self.regularizers.values():
            regularizer.attach(trained_parameters(self.student))

    def keep_gradients(self) -> None:
        """Keep the gradients of the loss without the regularizers, for those that learn from them; before clipping."""
        if not any(regularizer.reads_gradients for regularizer in self.regularizers.values()):
            return
        parameters = trained_parameters(self.student)
        pull = torch.stack([regularizer.penalty() for regularizer in self.regularizers.values()]).sum()
        pulls = torch.autograd.grad(pull, list(parameters.values()))
        self._gradients = {
            name: parameter.grad - own
            for (name, parameter), own in zip(parameters.items(), pulls)
            if parameter.grad is not None
        }

    def _views_and_outputs(
        self,
        images: Tensor | ViewPixels,
        ids: Tensor,
        device: torch.device,
        epoch: int,
        view_keys: Tensor | None,
        domains: Tensor | None,
    ) -> tuple[Views, list[list[Features]], list[Features]]:
        """The views of a batch, the teacher's outputs for its views, from the cache if it holds them, and the momentum
        network's.
        """
        cached = None
        if self.cache is not None:
            with self.clock.span("teacher"):
                cached = self.cache.find(ids, epoch)
        known = cached is not None and cached.complete
        with self.clock.span("augment"):
            views = self.augment(
                images, ids, epoch, teacher=not known or self.momentum is not None, view_keys=view_keys
            )
        momentum: list[Features] = []
        if self.momentum is not None:
            with self.clock.span("teacher"):
                momentum = self.momentum(views.teacher[-1], domains)
        if self.teacher is None:
            return views, [], momentum
        if self.cache is not None and cached is not None and known:
            with self.clock.span("teacher"):
                return views, self.cache.features(cached, device), momentum
        of_teacher = views.teacher[: len(self.teacher.inputs)]
        with self.side.beside([*chain(*of_teacher)]), self.clock.span("teacher"):
            outputs = self.teacher(of_teacher)
            if self.cache is not None and cached is not None:
                outputs = self.cache.keep(cached, outputs)
        return views, outputs, momentum


def _momentum_network(
    student: Student,
    terms: Sequence[Term],
    decay: tuple[float, float] | None,
    normalizations: Sequence[Normalization],
) -> MomentumNetwork | None:
    readers = [term for term in terms if term.reads_momentum]
    if decay is None:
        if readers:
            raise ValueError(f"{readers[0].name} reads the momentum network, and there is none; give its decay")
        return None
    if not readers:
        raise ValueError("no term reads the momentum network; leave its decay out")
    needs = frozenset().union(*(term.needs for term in readers))
    target_only = all(term.domain == "target" for term in readers)
    return MomentumNetwork(student, decay, needs, normalizations, target_only)
