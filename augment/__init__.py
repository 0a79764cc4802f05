"""Two views of a batch of images, drawn by sample: augmentation for distillation, usable by itself.

    >>> import torch, augment
    >>> settings = augment.AugmentSettings(student=["RandomResizedCrop", "RandomHorizontalFlip"])
    >>> student, teacher = augment.InputSpec((8, 8)), augment.InputSpec((16, 16))
    >>> dual = augment.DualAugment(settings, [teacher], student, seed=0)
    >>> views = dual(torch.zeros(2, 3, 20, 20, dtype=torch.uint8), torch.tensor([5, 6]), epoch=0)
    >>> views.student[0].shape, views.teacher[0][0].shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 3, 16, 16]))

Importing this package loads no torch: each name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from augment.chain import Chain
    from augment.draws import Draws
    from augment.dual import DualAugment
    from augment.names import list_operations
    from augment.policy import AugmentSettings
    from augment.views import InputSpec, Views

_HOMES = {
    "AugmentSettings": "augment.policy",
    "Chain": "augment.chain",
    "Draws": "augment.draws",
    "DualAugment": "augment.dual",
    "InputSpec": "augment.views",
    "Views": "augment.views",
    "list_operations": "augment.names",
}
"""Name → the module that defines it."""

__all__ = ["AugmentSettings", "Chain", "Draws", "DualAugment", "InputSpec", "Views", "list_operations"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    from augment.base import did_you_mean

    raise AttributeError(f"module 'augment' has no attribute {name!r}{did_you_mean(name, __all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
