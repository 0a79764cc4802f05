"""L2 to the weights after the latest task: every parameter is equally important.

``λ/2 · ‖θ − θ*‖²``. In the coordinates of a delta, it is weight decay towards the delta of the task before.

Paper: L2-SP, Li et al., arXiv 1802.01483, there towards the pretrained weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill.continual.regularizers.base import Batches, Regularizer


class L2(Regularizer):
    """``λ/2 · ‖θ − θ*‖²``.

    >>> import torch
    >>> from distill.continual.regularizers.l2 import L2
    >>> layer = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.zeros_(layer.bias)
    >>> l2 = L2(L2.Settings(weight=4))
    >>> l2.prepare(layer, dict(layer.named_parameters()), [])
    >>> with torch.no_grad():
    ...     _ = layer.bias.add_(0.5)
    >>> l2.penalty().item()
    0.5
    """

    class Settings(Regularizer.Settings):
        type: Literal["l2"] = "l2"

    settings: Settings
    paper: ClassVar[str] = "Li et al. 2018, arXiv 1802.01483"

    def importances(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], batches: Batches
    ) -> dict[str, Tensor]:
        return {name: torch.ones_like(parameter) for name, parameter in parameters.items()}
