"""UnfusedKorniaOp, for the kornia augmentations that no FusedKorniaOp wraps, and the choice between the two.

kornia separates drawing (``forward_parameters``) from applying (``forward(images, params=…)``). Here the drawing runs
in :class:`augment.keyed.KeyedDraws` on a batch padded to a few more rows, which are removed again. The parameters stay
on the CPU, where kornia reads them: on a GPU, reading them would synchronize with the device.

What kornia draws once for a whole call (the kernel size of ``RandomMotionBlur``, for one) is drawn once per
(seed, epoch, view).
"""

from __future__ import annotations

from typing import Any

import torch
from kornia import augmentation as K
from torch import Tensor

from augment.draws import Draws
from augment.keyed import KeyedDraws, padded_rows
from augment.kornia_ops import fused_kornia_op
from augment.operation import Operation, SampledOp

# RandomDissolving needs the weights of a diffusion model, which it fetches when it is constructed. A chain normalizes
# last: before, it would clip what was normalized.
_LEFT_OUT = {"RandomDissolving", "Normalize", "Denormalize"}


def kornia_classes() -> dict[str, type[K.AugmentationBase2D]]:
    """The augmentations that a chain can name: one image in, one image out, 2-D."""
    bases = (K.GeometricAugmentationBase2D, K.IntensityAugmentationBase2D, K.RigidAffineAugmentationBase2D)
    return {
        name: cls
        for name, cls in vars(K).items()
        if isinstance(cls, type)
        and issubclass(cls, K.AugmentationBase2D)
        and cls not in (*bases, K.AugmentationBase2D)
        and name not in _LEFT_OUT
    }


def moves_pixels(cls: type[K.AugmentationBase2D]) -> bool:
    """Whether an augmentation is geometric. kornia's elastic, fisheye and thin-plate warps have no geometric base."""
    return not issubclass(cls, K.IntensityAugmentationBase2D)


def kornia_operation(module: K.AugmentationBase2D, name: str) -> Operation:
    """A kornia augmentation as an operation: fused if a FusedKorniaOp wraps it and its arguments allow it."""
    operation = fused_kornia_op(module)
    return UnfusedKorniaOp(module, name, operation) if isinstance(operation, str) else SampledOp(operation, name)


class UnfusedKorniaOp(Operation):
    """A kornia augmentation run by kornia's own code, a pass of its own in a chain, with its draws keyed by sample.

    Args:
        module: kornia's augmentation.
        name: under which a chain keys its draws.
        reason: why it is not fused, for :meth:`augment.chain.Chain.plan`.
    """

    def __init__(self, module: K.AugmentationBase2D, name: str, reason: str = "kornia's own code"):
        super().__init__()
        self.name, self.reason = name, reason
        self.geometric = moves_pixels(type(module))
        # In a tuple, so that ``DualAugment.to("cuda")`` does not move kornia's samplers to the GPU.
        self._module = (module,)

    @property
    def module(self) -> K.AugmentationBase2D:
        return self._module[0]

    def sample(self, draws: Draws, shape: torch.Size) -> dict[str, Any]:
        """kornia's parameters for images of ``shape`` [B, C, H, W]."""
        batch, rows = shape[0], padded_rows(shape[0], shape[1:])
        with KeyedDraws(draws.to("cpu").padded(rows), self.name, trusted=True):
            params = self.module.forward_parameters(torch.Size((rows, *shape[1:])))
        cut = {name: value[:batch] if len(value) == rows else value for name, value in params.items()}
        cut["forward_input_shape"] = torch.tensor([batch, *params["forward_input_shape"][1:].tolist()])
        return cut

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        return self.module(images, params=self.sample(draws, images.shape))
