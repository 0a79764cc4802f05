"""Delta Distill: distills a large frozen teacher into a small student, a frozen backbone plus learned deltas.

    >>> import distill
    >>> student = distill.create_student("embedded:tf_efficientnet_lite0", ["low_rank"], num_classes=10, size=32)
    >>> teacher = distill.create_teacher("embedded:tf_efficientnet_lite1", num_classes=10, size=32)
    >>> kd = distill.create_objective("kd", student=student, teacher=teacher, temperature=4)

Names are imported at their first use, so that loader workers, which import this package, do not import networks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from augment.base.machine import set_openmp_defaults

if TYPE_CHECKING:
    from augment.base.errors import UserError
    from augment.dual import DualAugment
    from augment.names import list_operations
    from augment.views import InputSpec, Views
    from distill.api.deltas import attach, list_deltas, load_delta, save_delta
    from distill.api.models import create_student, create_teacher
    from distill.api.objectives import create_objective, list_objectives
    from distill.api.step import create_step
    from distill.api.views import create_augment
    from distill.deltas.attach import merge
    from distill.export.delta.bank import DeltaBank
    from distill.export.manifest import Result
    from distill.models.features import Features, FeatureShapes
    from distill.models.student import Student
    from distill.models.teacher import Teacher
    from distill.objectives.base import Objective, Targets
    from distill.past_views import ids_of_step, replay
    from distill.training.step import DistillationStep, StepOutput

    __version__: str

set_openmp_defaults()  # before torch is imported, which reads them then

_HOMES = {
    "DeltaBank": "distill.export.delta.bank",
    "DistillationStep": "distill.training.step",
    "DualAugment": "augment.dual",
    "FeatureShapes": "distill.models.features",
    "Features": "distill.models.features",
    "InputSpec": "augment.views",
    "Objective": "distill.objectives.base",
    "Result": "distill.export.manifest",
    "StepOutput": "distill.training.step",
    "Student": "distill.models.student",
    "Targets": "distill.objectives.base",
    "Teacher": "distill.models.teacher",
    "UserError": "augment.base.errors",
    "Views": "augment.views",
    "attach": "distill.api.deltas",
    "create_augment": "distill.api.views",
    "create_objective": "distill.api.objectives",
    "create_step": "distill.api.step",
    "create_student": "distill.api.models",
    "create_teacher": "distill.api.models",
    "ids_of_step": "distill.past_views",
    "list_deltas": "distill.api.deltas",
    "list_objectives": "distill.api.objectives",
    "list_operations": "augment.names",
    "load_delta": "distill.api.deltas",
    "merge": "distill.deltas.attach",
    "replay": "distill.past_views",
    "save_delta": "distill.api.deltas",
}
"""Name → the module that defines it."""

__all__ = [
    "DeltaBank",
    "DistillationStep",
    "DualAugment",
    "FeatureShapes",
    "Features",
    "InputSpec",
    "Objective",
    "Result",
    "StepOutput",
    "Student",
    "Targets",
    "Teacher",
    "UserError",
    "Views",
    "__version__",
    "attach",
    "create_augment",
    "create_objective",
    "create_step",
    "create_student",
    "create_teacher",
    "ids_of_step",
    "list_deltas",
    "list_objectives",
    "list_operations",
    "load_delta",
    "merge",
    "replay",
    "save_delta",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("delta-distill")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    from augment.base.suggestions import did_you_mean

    raise AttributeError(f"module 'distill' has no attribute {name!r}{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
