"""The terms of the loss: objectives, averaged over the policy's pairs of views and summed over the teachers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from augment.policy import ViewPlan
from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMaps
from distill.models.weights import check_fits
from distill.objectives.base import Objective, Targets
from distill.objectives.projector import CarrySettings

Carried = Mapping[str, Mapping[str, Tensor]]
"""Name of a term → its ``state_dict`` at the end of an earlier fit, see :meth:`Term.carried`."""


class Term(nn.Module):
    """One objective in the sum, averaged over the pairs of views; one module for each teacher that it reads.

    An objective with ``reads_views`` gets the outputs for all views, or for all pairs, in one call. One with
    ``reads_momentum`` has one module, for the momentum network, whose outputs are like the student's. An objective
    that reads logits gets those of the classes that teacher and student share, and labels as indices of
    these classes. An objective that reads only features gets the labels unchanged.

    Args:
        name: of the term, in logs.
        settings: of the objective.
        student: shapes of the student's outputs.
        teachers: shapes of the outputs of each of the teacher's networks.
        maps: of the networks' classes to the student's.

    Raises:
        ValueError: the objective cannot compare the student with one of the teachers.
    """

    def __init__(
        self,
        name: str,
        settings: Objective.Settings,
        student: FeatureShapes,
        teachers: Sequence[FeatureShapes],
        maps: LabelMaps,
    ):
        super().__init__()
        self.name = name
        self.settings = settings
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        self.reads_teacher, self.needs_index = cls.reads_teacher, cls.needs_index
        self.needs, self.domain = cls.needs, cls.domain
        self.reads_momentum, self.reads_views, self.view_pairs = cls.reads_momentum, cls.reads_views, cls.view_pairs
        of_teachers = cls.reads_frozen()
        self.maps = maps if of_teachers and "logits" in cls.needs else LabelMaps()
        seen: list[tuple[FeatureShapes, FeatureShapes | None]] = [(student, student if cls.reads_momentum else None)]
        if of_teachers:
            seen = [
                (student, shapes) if (map_ := self.maps[n]) is None else map_.shapes(student, shapes)
                for n, shapes in enumerate(teachers)
            ]
            if "token" in cls.needs and any(student_shapes.classes < student.classes for student_shapes, _ in seen):
                text = "teaches the student the labels too, so the teacher must know all of the student's classes"
                raise ValueError(f"{name} {text}")
        self.objectives = nn.ModuleList(
            cls(settings, student_shapes, teacher_shapes) for student_shapes, teacher_shapes in seen
        )

    def weight(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The factor of the term in the loss.

        Args:
            step: number of the step in the training, counted from 0.
            steps_per_epoch: updates in an epoch.
            epochs: length of the training.

        Returns:
            ``settings.weight`` times the schedule's factor.
        """
        return self.settings.weight * self.settings.schedule.factor(step, steps_per_epoch, epochs)

    def remember(self, labels: Tensor) -> None:
        """Give the objectives the labels [N] of all training samples, for a memory bank."""
        for objective in self.objectives:
            objective.remember(labels)  # type: ignore[operator]

    def after_step(self) -> None:
        """Run the objectives' hooks that follow an update."""
        for objective in self.objectives:
            objective.after_step()  # type: ignore[operator]

    def follow(self, decay: float) -> None:
        """Update the objectives' copies that follow as the momentum network does, with the decay of this update."""
        for objective in self.objectives:
            objective.follow(decay)  # type: ignore[operator]

    def check_views(self, plan: ViewPlan, policy: str) -> None:
        """Raise ``ValueError`` if the plan of a view policy lacks the views that the objective compares."""
        cls = self.settings.component
        assert cls is not None and issubclass(cls, Objective)
        cls.check_views(self.name, plan, policy)

    def carried(self) -> dict[str, Tensor]:
        """What a later fit of a stream starts with: ``state_dict()``, copied to the CPU; empty with ``carry: task``."""
        if not isinstance(self.settings, CarrySettings) or self.settings.carry == "task":
            return {}
        return {key: value.detach().cpu().clone() for key, value in self.state_dict().items()}

    def carry_on(self, state: Mapping[str, Tensor]) -> None:
        """Start with the state of an earlier fit, from :meth:`carried`; nothing changes with ``carry: task``.

        Raises:
            NetworkError: it is of another objective, of other settings, or of a student with other shapes.
        """
        if own := self.carried():
            check_fits(own, dict(state), f"the state that {self.name} carries over from the fit before")
            self.load_state_dict(dict(state))

    def extra_repr(self) -> str:
        return f"{self.name}, weight={self.settings.weight:g}"

    def forward(
        self,
        students: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        pairs: Sequence[tuple[int, int]],
        batches: Sequence[Targets],
        teacher_weights: Tensor | None = None,
    ) -> Tensor:
        """The term for each teacher; :meth:`total` adds them up.

        Args:
            students: ``students[v]``: outputs for the student's view v.
            teachers: ``teachers[n][v]``: outputs of teacher n for the teacher's view v; those of the momentum network
                alone for a term that reads it.
            pairs: (teacher's view, student's view), of the kind ``view_pairs``.
            batches: ``batches[v]``: targets of the student's view v.
            teacher_weights: from ``TeacherWeights``; those by sample multiply the weights of the samples.

        Returns:
            [N] the unweighted term with each teacher, or [1] if the objective reads no teacher.
        """
        if self.reads_views:
            return self._of_all_views(students, teachers, pairs, batches[0])
        if not self.reads_teacher:
            alone = [self.objectives[0](view, None, batch) for view, batch in zip(students, batches, strict=True)]
            return torch.stack(alone).mean(0, keepdim=True)
        values = []
        for n, views in enumerate(teachers):
            compared = []
            for t, s in pairs:
                batch = batches[s]
                if teacher_weights is not None and teacher_weights.ndim > 1:
                    own = teacher_weights[n, t]
                    batch = replace(batch, weights=own if batch.weights is None else own * batch.weights)
                compared.append(self._compare(n, students[s], views[t], batch))
            values.append(torch.stack(compared).mean())
        return torch.stack(values)

    def total(self, values: Tensor, teacher_weights: Tensor | None) -> Tensor:
        """The unweighted term, a scalar: the weighted sum of the output of :meth:`forward` over the teachers."""
        unweighted = not self.reads_teacher or self.reads_momentum
        if unweighted or teacher_weights is None or teacher_weights.ndim > 1:
            return values.sum()
        return (values * teacher_weights).sum()

    def _of_all_views(
        self,
        students: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        pairs: Sequence[tuple[int, int]],
        batch: Targets,
    ) -> Tensor:
        if not self.reads_teacher:
            return self.objectives[0](students, None, batch)[None]
        values = []
        for n, (views, objective) in enumerate(zip(teachers, self.objectives, strict=True)):
            own, other = [students[s] for _, s in pairs], [views[t] for t, _ in pairs]
            if (map_ := self.maps[n]) is not None:
                shared = [map_.features(*pair) for pair in zip(own, other)]
                own, other = [pair[0] for pair in shared], [pair[1] for pair in shared]
            values.append(objective(own, other, batch))
        return torch.stack(values)

    def _compare(self, n: int, student: Features, teacher: Features, batch: Targets) -> Tensor:
        if (map_ := self.maps[n]) is not None:
            student, teacher = map_.features(student, teacher)
            mixed = None if batch.mixed_labels is None else map_.labels(batch.mixed_labels)
            batch = replace(batch, labels=map_.labels(batch.labels), mixed_labels=mixed)
        return self.objectives[n](student, teacher, batch)


def build_terms(
    objectives: Sequence[Objective.Settings],
    student: FeatureShapes,
    teachers: Sequence[FeatureShapes],
    maps: LabelMaps | None = None,
    carried: Carried | None = None,
) -> list[Term]:
    """One term for each objective, named by its type; the second one of a type is named ``type-2``.

    Args:
        objectives: settings of the objectives.
        student: shapes of the student's outputs.
        teachers: shapes of the outputs of each of the teacher's networks; empty without a teacher.
        maps: of the networks' classes to the student's; None: the classes are the same.
        carried: name of a term → its state at the end of an earlier fit, see :meth:`Term.carried`.

    Returns:
        The terms, in the order of ``objectives``.

    Raises:
        ValueError: an objective cannot compare the student with one of the teachers, or a carried state does not fit.
    """
    seen: Counter[str] = Counter()
    terms = []
    for settings in objectives:
        kind = settings.type.rpartition(":")[2].lower()
        seen[kind] += 1
        name = kind if seen[kind] == 1 else f"{kind}-{seen[kind]}"
        terms.append(Term(name, settings, student, teachers, maps or LabelMaps()))
    for term in terms:
        if carried and term.name in carried:
            term.carry_on(carried[term.name])
    single = {term.name: term.objectives[0] for term in terms if len(term.objectives) == 1}
    for term in terms:
        for objective in term.objectives:
            objective.connect(single)  # type: ignore[operator]
    return terms


def needs_of(objectives: Sequence[Objective.Settings]) -> tuple[frozenset[str], frozenset[str]]:
    """The fields of ``Features`` that the objectives read of the student, and of the teacher; always the logits too."""
    student: frozenset[str] = frozenset({"logits"})
    teacher: frozenset[str] = frozenset({"logits"})
    for settings in objectives:
        cls = settings.component
        assert cls is not None and issubclass(cls, Objective)
        student |= cls.needs
        if cls.reads_frozen():
            teacher |= cls.needs - {"token"}
    return student, teacher


def trains_head(objectives: Sequence[Objective.Settings]) -> bool:
    """Whether an objective trains the student's classifier; self-supervised ones read its pooled features alone."""
    classes: list[Any] = [settings.component for settings in objectives]
    return any(own.needs & {"logits", "token"} or own.sets_head or own.needs_labels for own in classes)
