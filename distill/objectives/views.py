"""The base class of objectives that read the outputs for all views of a batch in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of, matched_fields


class ViewsObjective(Objective):
    """The base class of objectives whose loss gets lists: an entry for each view, or for each pair of views.

    Without a teacher, ``student[v]`` are the student's outputs for its view v, and ``teacher`` is None. With one,
    ``student[p]`` and ``teacher[p]`` are the outputs for the two views of pair p, of the kind ``view_pairs``. ``batch``
    is that of the first view: labels and indices are the same for all.

    Args: see :class:`distill.objectives.base.Objective`.
    """

    reads_views: ClassVar[bool] = True

    # Lists in the place of single outputs are what the class is for; Term calls it accordingly.
    def forward(  # type: ignore[override]
        self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets
    ) -> Tensor:
        """``loss_of_views``, computed with autocast off.

        Args:
            student: outputs of the student, for each view or pair.
            teacher: outputs of the teacher for each pair; None without a teacher.
            batch: labels [B] and other data of the samples.

        Returns:
            A scalar with a graph.
        """
        return super().forward(student, teacher, batch)  # type: ignore[arg-type]

    def loss(  # type: ignore[override]
        self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets
    ) -> Tensor:
        return self.loss_of_views(student, teacher, batch)

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets) -> Tensor:
        """The unweighted term, see :meth:`distill.objectives.base.Objective.loss`.

        Args:
            student: outputs of the student, for each view or pair.
            teacher: outputs of the teacher for each pair, without gradient; None without a teacher.
            batch: labels [B] and other data of the samples.

        Returns:
            A scalar with a graph.
        """
        raise NotImplementedError


def fields_of_views(student: Sequence[Features], field: Literal["logits", "pooled"]) -> list[Tensor]:
    """One output of the student for each of its views, in fp32.

    Raises:
        ValueError: there are fewer than two views, an output was not computed, or views differ in their batch.
    """
    if len(student) < 2:
        raise ValueError(f"two views of the student are compared, and there is {len(student)}")
    views = [field_of("student", features, field) for features in student]
    if len({len(view) for view in views}) > 1:
        raise ValueError(f"the student's views differ in their batch: {[len(view) for view in views]}")
    return views


def matched_fields_of_pairs(
    student: Sequence[Features], teacher: Sequence[Features] | None, field: Literal["logits", "pooled"]
) -> tuple[list[Tensor], list[Tensor]]:
    """One output of both networks for each pair of views, in fp32, the teacher's detached.

    Args:
        student: the student's outputs for each pair.
        teacher: the teacher's; None is an error.
        field: the output to read.

    Returns:
        The student's and the teacher's, a list each.
    """
    of_teacher: Sequence[Features | None] = [None] * len(student) if teacher is None else teacher
    pairs = [matched_fields(own, other, field) for own, other in zip(student, of_teacher, strict=True)]
    return [own for own, _ in pairs], [other for _, other in pairs]
