"""Minimum class confusion on the target domain.

Shape suffixes: N target samples of all ranks, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import of_target


def mcc(logits_NK: Tensor, temperature: float = 2.5) -> Tensor:
    """``L = (Σ C − tr C) / K``: how much classes are confused with each other, in [0, 1).

    ``P = softmax(z / T)``, ``C = Pᵀ diag(w) P`` with each row divided by its sum. The weights w are
    ``1 + e^(−H(p_i))`` with mean 1, without gradient, so that sure predictions count more.

    Args:
        logits_NK: z of target samples.
        temperature: T.

    Returns:
        A scalar with a graph.
    """
    p_NK = (logits_NK / temperature).softmax(1)
    entropy_N = -torch.special.xlogy(p_NK, p_NK).sum(1).detach()
    weight_N = 1 + (-entropy_N).exp()
    weight_N = weight_N / weight_N.mean()
    confusion_KK = p_NK.T @ (weight_N[:, None] * p_NK)
    confusion_KK = confusion_KK / confusion_KK.sum(1, keepdim=True).clamp(min=1e-8)
    return (confusion_KK.sum() - confusion_KK.trace()) / len(confusion_KK)


class MCC(Objective):
    """Minimum class confusion on the target domain. See :func:`mcc`.

    Paper: Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, arXiv 1912.03699.

    Example:
        >>> import torch, distill
        >>> own = distill.create_objective("mcc")
        >>> batch = distill.Targets(labels=torch.tensor([-1, -1]))
        >>> round(own(distill.Features(logits=torch.zeros(2, 2)), None, batch).item(), 4)
        0.5
    """

    class Settings(Objective.Settings):
        type: Literal["mcc"] = "mcc"
        temperature: float = Field(2.5, gt=0, description="T, which softens the predictions")

    reads_teacher: ClassVar[bool] = False
    domain: ClassVar[Literal["all", "target", "both"]] = "target"
    paper: ClassVar[str] = "Jin et al., ECCV 2020, arXiv 1912.03699"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        logits_NK = of_target(field_of("student", student, "logits"), batch)
        return mcc(logits_NK, self.settings.temperature) if len(logits_NK) else logits_NK.sum()
