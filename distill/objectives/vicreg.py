"""VICReg: invariance between two views, variance of each projected feature, no covariance; no teacher, no labels.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import FeatureShapes
from distill.objectives.compare import same_shape
from distill.objectives.projected_views import ProjectedViewsObjective
from distill.objectives.projector import CarrySettings, mlp
from distill.objectives.ranks import gather_batch


def vicreg(
    first_BP: Tensor, second_BP: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """Variance, invariance and covariance of two views::

        s(z, z') = mean over samples and features of (z − z')²
        v(z)     = (1/P) Σ_p max(0, 1 − √(var(z_p) + 1e-4))
        c(z)     = (1/P) Σ_{p ≠ q} cov(z)_pq²
        L        = λ s(z, z') + μ (v(z) + v(z')) + ν (c(z) + c(z'))

    Variance and covariance are those of the batch of all ranks, divided by G − 1 (by 1 for a batch of one).

    Args:
        first_BP: projected features z of the first view.
        second_BP: z', those of the second view of the same images.
        invariance: λ.
        variance: μ.
        covariance: ν.

    Returns:
        A scalar with a graph to both views.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", first_BP, second_BP)
    first_GP, second_GP = (gather_batch(view.float()) for view in (first_BP, second_BP))
    total = invariance * F.mse_loss(first_GP, second_GP)
    for z_GP in (first_GP, second_GP):
        centered_GP = z_GP - z_GP.mean(0)
        covariance_PP = centered_GP.T @ centered_GP / max(1, len(z_GP) - 1)
        variance_P = covariance_PP.diagonal()
        spread = F.relu(1 - (variance_P + 1e-4).sqrt()).mean()
        off_diagonal = (covariance_PP.square().sum() - variance_P.square().sum()) / len(variance_P)
        total = total + variance * spread + covariance * off_diagonal
    return total


class VICReg(ProjectedViewsObjective):
    """VICReg on projected pooled features: the mean of :func:`vicreg` over the pairs of student views.

    The projector is ``Linear(hidden) – BN – ReLU – Linear(hidden) – BN – ReLU – Linear(dim)``.

    Paper: Bardes, Ponce and LeCun, VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning,
    ICLR 2022, arXiv 2105.04906; λ = μ = 25, ν = 1; the paper has widths of 8192.

    Deviation: s is a mean over features too, as in the authors' code; the paper's equation sums over them. The
    variance terms of both views are added, as in the paper; the authors' code halves their sum.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> term = distill.create_objective("vicreg", student=FeatureShapes(2, pooled=8), hidden=4, dim=3)
        >>> views = [distill.Features(pooled=torch.ones(1, 8))] * 2
        >>> round(term(views, None, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # 2 · 25 · (1 − √1e-4)
        49.5
    """

    class Settings(CarrySettings):
        type: Literal["vicreg"] = "vicreg"
        hidden: int = Field(2048, gt=0, description="width of the projector's hidden layers")
        dim: int = Field(2048, gt=0, description="width of the projected features")
        invariance: float = Field(25.0, ge=0, description="λ, factor of the distance between the views")
        variance: float = Field(25.0, ge=0, description="μ, factor of the variance term")
        covariance: float = Field(1.0, ge=0, description="ν, factor of the covariance term")

    paper: ClassVar[str] = "Bardes et al., ICLR 2022, arXiv 2105.04906"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projector = mlp([student.pooled, settings.hidden, settings.hidden, settings.dim], bias=False)

    def loss_of_pair(self, first_BP: Tensor, second_BP: Tensor) -> Tensor:
        s = self.settings
        return vicreg(first_BP, second_BP, s.invariance, s.variance, s.covariance)
