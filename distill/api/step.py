"""Creates a training step from the names of objectives, for a custom training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from augment.dual import DualAugment
from distill.api.arguments import checks_names
from distill.api.objectives import ObjectiveLike, check_needs, objective_settings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.base import Objective
from distill.training.settings import TrainingSettings
from distill.training.step import DistillationStep
from distill.training.terms import build_terms


@checks_names
def create_step(
    student: Student,
    teacher: Teacher | None,
    objectives: ObjectiveLike | Iterable[ObjectiveLike],
    augment: DualAugment,
    *,
    steps_per_epoch: int,
    epochs: int = 1,
    train: tuple[Sequence[str], Tensor] | None = None,
    momentum: tuple[float, float] | None = None,
) -> DistillationStep:
    """The training step without loop and optimizer: ``step(images, ids, labels, epoch=…, step=…) → loss and terms``.

    Args:
        student: what is trained, such as :func:`create_student` makes.
        teacher: such as :func:`create_teacher` makes; None: the student learns from labels alone.
        objectives: names (see :func:`list_objectives`), mappings with ``type`` and settings, or settings. A term that
            reads the teacher is computed for each of its networks and weighted with the network's weight.
        augment: makes the views, such as :func:`create_augment` makes.
        steps_per_epoch: number of updates in an epoch, for the schedules of the objectives.
        epochs: number of epochs of the whole training, for the schedules.
        train: names and labels [N] of the training samples, for objectives with a memory bank; the ids of a batch are
            then :func:`augment.draws.sample_key` of the names.
        momentum: decay of the momentum network at the start and at the end, such as ``(0.99, 1.0)``, for objectives
            that read it (``byol``, ``moco``). Then ``augment`` makes views for it, as for a last network of the
            teacher: ``create_augment("both_to_both", student=student, teacher=[..., student.input])``.

    Returns:
        A module on the CPU whose trainable parameters are those of the student and of the objectives.

    Raises:
        TypeError: there is no argument, or no setting of an objective, of a given name; the text gives the nearest one.
        UserError: there is no such objective, or the networks do not compute what it reads.
        ValueError: a setting is out of range, or the student cannot be compared with the teacher.

    Example: see :class:`DistillationStep`.
    """
    given = [objectives] if isinstance(objectives, str | Mapping | Objective.Settings) else list(objectives)
    settings = [objective_settings(value, f"create_step() objectives.{n},") for n, value in enumerate(given)]
    if not settings:
        raise ValueError("create_step() needs at least one objective")
    for own in settings:
        cls = own.component
        if cls.needs_index and train is None:  # type: ignore[union-attr]
            raise ValueError(f"{own.type} has a memory bank of the training samples: give train=(names, labels)")
        check_needs("student", own.type, student, cls.needs)  # type: ignore[union-attr]
        if cls.reads_frozen():  # type: ignore[union-attr]
            if teacher is None:
                raise ValueError(f"{own.type} reads a teacher, and there is none")
            check_needs("teacher", own.type, teacher, cls.needs - {"token"})  # type: ignore[union-attr]
    shapes, maps = (teacher.shapes, teacher.maps) if teacher is not None else ([], None)
    terms = build_terms(settings, student.shapes, shapes, maps)
    training = TrainingSettings(epochs=epochs)
    return DistillationStep(student, teacher, terms, augment, training, steps_per_epoch, train, momentum=momentum)
