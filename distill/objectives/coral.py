"""CORAL: the covariances of the two domains' pooled features become equal.

Shape suffixes: S source and T target samples of all ranks, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import of_both


def coral(source_SD: Tensor, target_TD: Tensor) -> Tensor:
    """``L = ‖C_s − C_t‖²_F / (4 D²)``, C the unbiased covariance.

    Args:
        source_SD: features of the source domain, S ≥ 2.
        target_TD: features of the target domain, T ≥ 2.

    Returns:
        A scalar with a graph.
    """
    covariances = []
    for own_ND in (source_SD, target_TD):
        centered_ND = own_ND - own_ND.mean(0)
        covariances.append(centered_ND.T @ centered_ND / (len(own_ND) - 1))
    return (covariances[0] - covariances[1]).square().sum() / (4 * source_SD.shape[1] ** 2)


class CORAL(Objective):
    """Deep CORAL on pooled features. See :func:`coral`. Zero where a domain has less than two samples.

    Paper: Sun and Saenko, Deep CORAL, ECCV 2016 workshops, arXiv 1607.01719.

    Example:
        >>> import torch, distill
        >>> own = distill.create_objective("coral")
        >>> features = distill.Features(pooled=torch.tensor([[0.0], [2.0], [0.0], [0.0]]))
        >>> batch = distill.Targets(labels=torch.tensor([0, 1, -1, -1]), domains=torch.tensor([0, 0, 1, 1]))
        >>> own(features, None, batch).item()  # (2 − 0)² / 4
        1.0
    """

    class Settings(Objective.Settings):
        type: Literal["coral"] = "coral"

    reads_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    domain: ClassVar[Literal["all", "target", "both"]] = "both"
    paper: ClassVar[str] = "Sun and Saenko 2016, arXiv 1607.01719"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        pooled_BD = field_of("student", student, "pooled")
        source_SD, target_TD = of_both(pooled_BD, batch, "coral")
        return coral(source_SD, target_TD) if min(len(source_SD), len(target_TD)) > 1 else pooled_BD.sum() * 0
