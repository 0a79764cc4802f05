"""Creates objectives by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn

from augment.base import matching
from augment.base.errors import UserError
from distill.api.arguments import OBJECTIVES, check_method
from distill.models.features import Features, FeatureShapes
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.base import Objective, Targets

ObjectiveLike = str | Mapping[str, Any] | Objective.Settings
"""``"kd"``, ``{"type": "kd", "temperature": 4}``, or settings."""


class UnboundObjective(nn.Module):
    """An objective that is built from the shapes of the first features it gets.

    It is for objectives without parameters. Those with projectors or memory banks must be built before the optimizer,
    so :func:`create_objective` needs ``student`` and ``teacher`` for them.

    Shapes: B batch, K classes. Returns a scalar with a graph.
    """

    def __init__(self, settings: Objective.Settings):
        super().__init__()
        self.settings = settings
        self.objective: Objective | None = None

    def extra_repr(self) -> str:
        return "" if self.objective else f"type={self.settings.type!r}, unbound"

    def forward(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        """The unweighted term; see :meth:`distill.objectives.base.Objective.loss`.

        Args:
            student: outputs for the student's view.
            teacher: outputs for the teacher's view of the same samples; None for an objective that reads no teacher.
            batch: labels [B] and other data of the samples.

        Returns:
            A scalar with a graph.

        Raises:
            UserError: the objective has parameters or a memory bank, which no optimizer would update.
        """
        if self.objective is None:
            shapes = None if teacher is None else _shapes(teacher)
            cls = _component(self.settings)
            if cls.reads_views:
                self._refuse()
            objective = cls(self.settings, _shapes(student), shapes)
            if any(True for _ in objective.parameters()) or objective.needs_index:
                self._refuse()
            self.objective = objective.to(batch.labels.device)
        loss: Tensor = self.objective(student, teacher, batch)
        return loss

    def _refuse(self) -> NoReturn:
        raise UserError(
            f"{self.settings.type} has parameters or a memory bank, so it must be built before the "
            f"optimizer: create_objective({self.settings.type!r}, student=student, teacher=teacher)"
        )


def create_objective(
    type: ObjectiveLike,
    *,
    student: Student | FeatureShapes | None = None,
    teacher: Teacher | FeatureShapes | None = None,
    **settings: Any,
) -> Objective | UnboundObjective:
    """One term of the loss: ``objective(student_features, teacher_features, targets) → scalar``.

    The result is not weighted: ``objective.settings.weight`` is the weight in its paper.

    Args:
        type: a name of :func:`list_objectives`, ``package.module:Class``, a mapping with ``type``, or settings.
        student: the student, or its ``shapes``; None: taken from the first batch, for objectives without
            projectors.
        teacher: the teacher, of one network, or its ``shapes``. Needed together with ``student`` by objectives that
            read a teacher; not by those that read the momentum network, whose outputs are like the student's.
        settings: of the objective, such as ``temperature``; ``distill objectives`` lists them.

    Returns:
        A module; its parameters, where it has any, are trained together with the student and are not exported.

    Raises:
        TypeError: there is no setting of a given name; the text gives the nearest one.
        UserError: there is no such objective, or the networks do not compute what it reads.
        ValueError: a setting is out of range, or the two networks cannot be compared.

    Example:
        >>> import torch, distill
        >>> kd = distill.create_objective("kd", temperature=4)
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> batch = distill.Targets(labels=torch.tensor([0]))
        >>> float(kd(distill.Features(logits=logits), distill.Features(logits=logits), batch))
        0.0
    """
    own = objective_settings(type, "create_objective()", settings)
    cls = _component(own)
    if student is None:
        if teacher is not None:
            raise TypeError("create_objective() got a teacher without a student; give both, or neither")
        return UnboundObjective(own)
    if isinstance(teacher, Teacher) and len(teacher.shapes) != 1:
        raise UserError(f"{own.type} reads one network; create one objective for each: teacher=teacher.shapes[n]")
    reads = cls.reads_frozen()
    for name, network in (("student", student), ("teacher", teacher if reads else None)):
        check_needs(name, own.type, network, cls.needs - ({"token"} if name == "teacher" else set()))
    student_shapes = student.shapes if isinstance(student, Student) else student
    teacher_shapes = teacher.shapes[0] if isinstance(teacher, Teacher) else teacher
    if cls.reads_momentum:
        teacher_shapes = student_shapes
    return cls(own, student_shapes, teacher_shapes if cls.reads_teacher else None)


def objective_settings(value: ObjectiveLike, caller: str, more: Mapping[str, Any] | None = None) -> Objective.Settings:
    """Settings of an objective given as a name, a mapping with ``type``, or settings.

    Args:
        value: a name, a mapping with ``type`` and settings, or settings.
        caller: the function and argument that errors name.
        more: settings that override those of ``value``.

    Returns:
        The validated settings.

    Raises:
        TypeError: there is no setting of a given name; the text gives the nearest one.
        UserError: there is no such objective.
        ValueError: a setting is out of range.
    """
    cls = check_method(OBJECTIVES, value, caller, more or {})
    if isinstance(value, Objective.Settings) and not more:
        return value
    settings = cls(**{**({"type": value} if isinstance(value, str) else dict(value)), **(more or {})})
    assert isinstance(settings, Objective.Settings)
    return settings


def list_objectives(pattern: str = "") -> list[str]:
    """Names of the objectives that match an fnmatch pattern, sorted; all without a pattern.

    Example:
        >>> import distill
        >>> distill.list_objectives("*kd")
        ['dkd', 'kd', 'mlkd', 'nkd', 'reviewkd', 'rkd', 'simkd']
    """
    return matching(OBJECTIVES.known(), pattern)


def _component(settings: Objective.Settings) -> type[Objective]:
    cls = settings.component
    assert cls is not None and issubclass(cls, Objective)
    return cls


def check_needs(name: str, kind: str, network: object, needs: frozenset[str] | set[str]) -> None:
    """Check that a network computes the outputs that an objective reads.

    Args:
        name: "student" or "teacher".
        kind: type of the objective.
        network: ``Student`` or ``Teacher``; anything else is not checked.
        needs: fields of ``Features`` that the objective reads of it.

    Raises:
        UserError: a field is missing; the text gives the ``needs`` to create the network with.
    """
    if isinstance(network, Student | Teacher) and (missing := needs - network.needs):
        wanted = ", ".join(repr(need) for need in sorted({*network.needs, *needs}))
        raise UserError(
            f"{kind} reads {' and '.join(sorted(missing))}, which the {name} does not compute; "
            f"create it with needs=({wanted},)"
        )


def _shapes(features: Features) -> FeatureShapes:
    logits, pooled = features.logits, features.pooled
    return FeatureShapes(
        classes=0 if logits is None else logits.shape[1],
        pooled=0 if pooled is None else pooled.shape[1],
        maps={name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in features.maps.items()},
    )
