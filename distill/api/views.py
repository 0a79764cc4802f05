"""Creates the augmentation that makes a student's and a teacher's views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from augment.dual import AugmentSettings, DualAugment
from augment.policy import Policy
from augment.views import InputSpec
from distill.api.arguments import refuse_unknown
from distill.models.student import Student
from distill.models.teacher import Teacher

RecipeLike = str | Sequence[str | Mapping[str, Any]]
"""``"simclr"``, or a list of operations: names, or mappings with ``type`` and arguments."""


def create_augment(
    policy: Policy = "weak_teacher",
    *,
    student: Student | InputSpec,
    teacher: Teacher | InputSpec | Sequence[InputSpec] | None = None,
    recipe: RecipeLike | None = None,
    teacher_recipe: RecipeLike | None = None,
    seed: int = 0,
    **settings: Any,
) -> DualAugment:
    """Two views of a batch, at the sizes and normalizations that the networks expect.

    ``augment(images, ids, epoch) → Views``: images [B, 3, H, W] uint8, or floats in [0, 1]; ids [B] int64. A sample's
    views depend only on seed, epoch and id, so they are the same in any batch and after a restart.

    Args:
        policy: how the two views relate, see :class:`augment.policy.AugmentSettings`.
        student: the student, or the input that it expects.
        teacher: the teacher, or the inputs that its networks expect; None: views for the student alone.
        recipe: the student's operations in order, or a preset such as ``"simclr"``; None: ``"strong"``.
        teacher_recipe: the teacher's; None: as the policy defines.
        seed: of all draws.
        settings: other keys of ``AugmentSettings``: ``mix``, ``ramp``, ``local``, ``engine``, ``compile``.

    Returns:
        A module without parameters.

    Raises:
        TypeError: there is no setting of a given name; the text gives the nearest one.
        ValueError: an operation or a value cannot be used; the text names its key. Or teacher and student expect
            different kinds of images.

    Example:
        >>> import torch, distill
        >>> augment = distill.create_augment(
        ...     "shared_geometry", student=distill.InputSpec((24, 24)), teacher=distill.InputSpec((32, 32)), seed=1
        ... )
        >>> views = augment(torch.zeros(2, 3, 40, 40, dtype=torch.uint8), torch.tensor([5, 6]), epoch=0)
        >>> views.student[0].shape, views.teacher[0][0].shape
        (torch.Size([2, 3, 24, 24]), torch.Size([2, 3, 32, 32]))
    """
    others = set(AugmentSettings.model_fields) - {"policy", "student", "teacher"}
    refuse_unknown("create_augment()", settings, {*others, "recipe", "teacher_recipe", "seed"})
    chosen = {"policy": policy, "student": recipe, "teacher": teacher_recipe, **settings}
    tree = {key: _plain(value) for key, value in chosen.items() if value is not None}
    if isinstance(teacher, Teacher):
        inputs: Sequence[InputSpec] = teacher.inputs
    else:
        inputs = [teacher] if isinstance(teacher, InputSpec) else list(teacher or ())
    own = student.input if isinstance(student, Student) else student
    return DualAugment(AugmentSettings.model_validate(tree), inputs, own, seed)


def _plain(value: Any) -> Any:
    """A tuple as a list, which a recipe must be; other values unchanged."""
    return list(value) if isinstance(value, tuple) else value
