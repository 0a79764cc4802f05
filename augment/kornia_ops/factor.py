"""OneFactor, the base of brightness, contrast, saturation and hue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from augment.kornia_ops.base import FusedKorniaOp, limits, ranged


class OneFactor(FusedKorniaOp):
    """Base of the color operations that draw one factor, uniform in a range."""

    factor: str
    """kornia's name of the parameter."""
    uniforms = 1

    def __init__(self, module: Any):
        super().__init__(module)
        self.range = limits(getattr(module._param_generator, self.factor))

    def parameters(self, u: Tensor, shape: torch.Size) -> dict[str, Tensor]:
        return {self.factor: ranged(u[:, 0], *self.range)}
