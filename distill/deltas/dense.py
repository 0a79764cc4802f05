"""Dense: ``W' = W + D``, D of W's shape, starting at zero. The reference that every smaller delta is compared with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from distill.deltas.base import DeltaSettings, WeightDelta


class Dense(WeightDelta):
    """``W' = W + D``."""

    class Settings(DeltaSettings):
        type: Literal["dense"] = "dense"

    def __init__(self, settings: Settings, layer: nn.Module):
        super().__init__(settings, layer)
        weight: Tensor = layer.weight  # type: ignore[assignment]
        self.D = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.D
