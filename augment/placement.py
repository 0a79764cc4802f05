"""Views made by the loader's workers, with the same draws and chains as on the device.

A chain that runs on the CPU (torchvision's transforms, kornia's operations without a fused form, a run without a GPU)
delays the training step. In the workers it runs in parallel with the step. They make whole views, with the same chain
that the step would call, and send one byte per value (two for images of 16 bits): the views are the same within that
rounding, half of 1/255 (of 1/65535).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from augment.dual import DualAugment
from augment.views import ViewPixels


@overload
def to_device(pixels: Tensor, device: torch.device | str) -> Tensor: ...
@overload
def to_device(pixels: ViewPixels, device: torch.device | str) -> ViewPixels: ...
def to_device(pixels: Tensor | ViewPixels, device: torch.device | str) -> Tensor | ViewPixels:
    """A batch's images, or its views, on a device."""
    if isinstance(pixels, Tensor):
        return pixels.to(device, non_blocking=True)
    return {name: view.to(device, non_blocking=True) for name, view in pixels.items()}


class LoaderViews:
    """Make the views of a batch in a worker.

    Args:
        dual: its views are made. Only its settings are sent to the worker, which builds its own at its first batch.
        known: ``known(ids, epoch)`` tells whether a batch needs none of the teacher's views; also sent to the worker.
    """

    def __init__(self, dual: DualAugment, known: Callable[[Tensor, int], bool] | None = None):
        self._arguments = (dual.settings, dual.teachers, dual.student, dual.seed)
        self._dual: DualAugment | None = None
        self._known = known

    def __call__(self, images: Tensor, ids: Tensor, epoch: int, view_keys: Tensor | None = None) -> ViewPixels:
        """The views of a batch, not yet normalized.

        Args:
            images: [B, 3, H, W] uint8 or uint16 on the CPU.
            ids: [B] int64 on the CPU.
            epoch: number of the epoch.
            view_keys: [B] int64 on the CPU, see :meth:`augment.dual.DualAugment.forward`.

        Returns:
            Name of a view → [B, 3, h, w] of the same type.
        """
        if self._dual is None:
            self._dual = DualAugment(*self._arguments)
        known = self._known is not None and self._known(ids, epoch)
        return self._dual.render(images, ids, epoch, teacher=not known, view_keys=view_keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_dual": None}
