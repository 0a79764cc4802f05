"""Reads the outputs that an objective compares, and checks that they exist and have matching shapes.

Shapes must be equal: [8, 10] and [1, 10] would broadcast to a meaningless loss.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from distill.models.features import Features, FeatureShapes


def field_of(side: str, features: Features | None, field: Literal["logits", "pooled", "token"]) -> Tensor:
    """``features.logits`` [B, K], ``.pooled`` [B, D] or ``.token`` [B, K] in fp32.

    Args:
        side: ``student`` or ``teacher``, for the error's text.
        features: the network's outputs; None without such a network.
        field: the output to read.

    Returns:
        [B, K] or [B, D] in fp32.

    Raises:
        ValueError: it was not computed, has no batch axis, or holds no sample.
    """
    values = None if features is None else getattr(features, field)
    if values is None:
        raise ValueError(f"the {side} has no {field}")
    if values.ndim != 2 or values.shape[0] == 0:
        raise ValueError(f"{side} {field}: expected shape (batch, width) with at least one sample, got {shape(values)}")
    return values.float()


def matched_fields(
    student: Features, teacher: Features | None, field: Literal["logits", "pooled"]
) -> tuple[Tensor, Tensor]:
    """One output of both networks in fp32, the teacher's detached. Batch sizes must be equal; for logits, classes too.

    Args:
        student: the student's outputs.
        teacher: the teacher's; None is an error.
        field: the output to read.

    Returns:
        The student's and the teacher's, [B, K] or [B, D] each.
    """
    student_BX, teacher_BY = field_of("student", student, field), field_of("teacher", teacher, field).detach()
    if student_BX.shape[0] != teacher_BY.shape[0]:
        raise ValueError(f"student and teacher {field} differ in batch: {shape(student_BX)} and {shape(teacher_BY)}")
    if field == "logits":
        same_shape("logits", student_BX, teacher_BY)
    return student_BX, teacher_BY


def same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Raises ``ValueError`` that names both shapes unless they are equal.

    Args:
        what: what the tensors are, for the error's text.
        student: the student's tensor.
        teacher: the teacher's tensor.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher {what} differ in shape: {shape(student)} and {shape(teacher)}")


def same_classes(student: FeatureShapes, teacher: FeatureShapes | None) -> None:
    """Raises ``ValueError`` unless there is a teacher with a classifier for the student's number of classes."""
    known = require_classifier(teacher).classes
    if student.classes != known:
        raise ValueError(
            f"the student has {student.classes} classes, the teacher {known}: their logits cannot be compared; train "
            "the teacher on these classes with fit_teacher, map its classes with teacher.networks.N.labels, or compare "
            "features instead"
        )


def require_classifier(teacher: FeatureShapes | None) -> FeatureShapes:
    """The teacher's shapes. Raises ``ValueError`` without a teacher, or if it has no classifier and so no logits."""
    shapes = require_teacher(teacher)
    if not shapes.classes:
        raise ValueError(
            "the teacher has no classifier, so it has no logits to compare: train one on these classes with "
            "fit_teacher (method: probe trains it alone), load weights that have one, or compare features instead, "
            "with an objective such as pooled or fitnets"
        )
    return shapes


def require_teacher(teacher: FeatureShapes | None) -> FeatureShapes:
    """The teacher's shapes. Raises ``ValueError`` without a teacher."""
    if teacher is None:
        raise ValueError("this objective reads a teacher, and there is none")
    return teacher


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape as an error text shows it: ``(8, 10)``."""
    return tuple(tensor.shape)
