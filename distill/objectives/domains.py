"""Which samples of a batch are of the target domain, and their values over all ranks, for objectives that read them.

Shape suffixes: B batch, N samples of a domain in the batches of all ranks, X any width, D pooled width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import FeatureShapes
from distill.objectives.adversarial import reversed_gradient
from distill.objectives.base import Objective, Targets
from distill.objectives.ranks import gather_batch


def target_mask(batch: Targets) -> Tensor:
    """[B] bool: the samples of the target domain; all samples where the data has one domain."""
    if batch.domains is None:
        return torch.ones_like(batch.labels, dtype=torch.bool)
    return batch.domains == 1


def of_target(values_BX: Tensor, batch: Targets) -> Tensor:
    """[N, X]: the rows of the target domain in the batches of all ranks, with gradient."""
    mask_B = target_mask(batch)
    return gather_batch(values_BX)[gather_batch(mask_B.to(values_BX.dtype)) > 0]


def of_both(values_BX: Tensor, batch: Targets, name: str) -> tuple[Tensor, Tensor]:
    """The rows of the source and of the target domain in the batches of all ranks, with gradient.

    Args:
        values_BX: of every sample.
        batch: its ``domains`` are read.
        name: of the objective, for the error.

    Returns:
        [N, X] each.

    Raises:
        ValueError: the batch does not say which samples are of which domain.
    """
    if batch.domains is None:
        raise ValueError(f"{name} compares two domains, and the batch has one; set data.target")
    values_NX, target_N = gather_batch(values_BX), gather_batch(batch.domains.to(values_BX.dtype)) > 0
    return values_NX[~target_N], values_NX[target_N]


class DomainClassifier(Objective):
    """The base class of adversarial alignment: a discriminator D of source and target, its gradient reversed.

    The loss is the binary cross-entropy of D, mean over the two domains, each of them with weights of mean 1. D is
    ``Linear – ReLU – Linear – ReLU – Linear`` and learns by the same optimizer; what it reads gets the gradient times
    −λ, ``λ = 2 / (1 + e^(−i / ramp)) − 1`` in update i, which is counted from 1 and kept in checkpoints.

    Args: see :class:`distill.objectives.base.Objective`.
    """

    class Settings(Objective.Settings):
        hidden: int = Field(256, gt=0, description="width of the discriminator's two hidden layers")
        ramp: float = Field(1000, gt=0, description="updates over which λ rises: it is 0.46 after so many")

    settings: Any
    updates: Tensor

    def __init__(self, settings: Any, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        hidden = settings.hidden
        layers = [nn.Linear(self.width(student), hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]
        self.discriminator = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def width(self, student: FeatureShapes) -> int:
        """Width of what the discriminator reads."""
        return student.pooled

    def after_step(self) -> None:
        self.updates += 1

    def discriminate(self, inputs_BX: Tensor, batch: Targets, weights_B: Tensor | None = None) -> Tensor:
        """The discriminator's loss, with the gradient of its inputs reversed.

        Args:
            inputs_BX: of every sample.
            batch: its ``domains`` are read.
            weights_B: factors of the samples, normalized to mean 1 in each domain; None: equal.

        Returns:
            A scalar with a graph.

        Raises:
            ValueError: the batch does not say which samples are of which domain.
        """
        factor = 2 / (1 + torch.exp(-(self.updates + 1) / self.settings.ramp)) - 1
        logits_B = self.discriminator(reversed_gradient(inputs_BX, factor))[:, 0]
        weights_B = torch.ones_like(logits_B) if weights_B is None else weights_B.detach()
        columns_BX = torch.stack([logits_B, weights_B], 1)
        losses = []
        for number, rows_NX in enumerate(of_both(columns_BX, batch, self.settings.type)):
            logits_N, own_N = rows_NX.unbind(1)
            losses_N = F.binary_cross_entropy_with_logits(
                logits_N, torch.full_like(logits_N, float(number)), reduction="none"
            )
            losses.append((losses_N * own_N).sum() / own_N.sum().clamp(min=math.ulp(1.0)))
        return torch.stack(losses).mean()
