"""Barlow Twins: two views agree in each projected feature, and the features are uncorrelated; no teacher, no labels.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.models.features import FeatureShapes
from distill.objectives.compare import same_shape
from distill.objectives.projected_views import ProjectedViewsObjective
from distill.objectives.projector import CarrySettings, mlp
from distill.objectives.ranks import gather_batch


def cross_correlation(first_BP: Tensor, second_BP: Tensor, redundancy: float = 5e-3) -> Tensor:
    """How far the cross-correlation matrix of two views is from the identity.

    ``L = Σ_p (1 − c_pp)² + λ Σ_{p ≠ q} c_pq²`` with ``c = (1/G) Σ_g ẑ_gᵀ ẑ'_g``, features standardized over the batch
    of all ranks, ``ẑ = (z − mean) / √(var + 1e-5)``. Zero if both views agree and no two features are correlated. For a
    batch of one c is zero, so the loss is P.

    Args:
        first_BP: projected features of the first view.
        second_BP: those of the second view of the same images.
        redundancy: λ.

    Returns:
        A scalar with a graph to both views.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", first_BP, second_BP)
    first_GP, second_GP = (_standardized(gather_batch(view.float())) for view in (first_BP, second_BP))
    c_PP = first_GP.T @ second_GP / len(first_GP)
    on_diagonal = (1 - c_PP.diagonal()).square().sum()
    off_diagonal = c_PP.square().sum() - c_PP.diagonal().square().sum()
    return on_diagonal + redundancy * off_diagonal


def _standardized(z_GP: Tensor) -> Tensor:
    centered_GP = z_GP - z_GP.mean(0)
    return centered_GP * (centered_GP.square().mean(0) + 1e-5).rsqrt()


class BarlowTwins(ProjectedViewsObjective):
    """Barlow Twins on projected pooled features: the mean of :func:`cross_correlation` over the pairs of student views.

    The projector is ``Linear(hidden) – BN – ReLU – Linear(hidden) – BN – ReLU – Linear(dim)``.

    Paper: Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021, arXiv 2103.03230;
    λ 5e-3, a loss scaled by 0.1 here and in CaSSLe's recipe for CIFAR (arXiv 2112.04215); the paper has widths of 8192.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> twins = distill.create_objective("barlow_twins", student=FeatureShapes(2, pooled=8), hidden=4, dim=3)
        >>> views = [distill.Features(pooled=torch.ones(1, 8)), distill.Features(pooled=torch.zeros(1, 8))]
        >>> twins(views, None, distill.Targets(labels=torch.tensor([0]))).item()  # one sample has no correlation
        3.0
    """

    class Settings(CarrySettings):
        type: Literal["barlow_twins"] = "barlow_twins"
        weight: float = Field(0.1, ge=0, description="factor of this term in the sum")
        hidden: int = Field(2048, gt=0, description="width of the projector's hidden layers")
        dim: int = Field(2048, gt=0, description="width of the projected features")
        redundancy: float = Field(5e-3, ge=0, description="λ, factor of the correlations between features")

    paper: ClassVar[str] = "Zbontar et al., ICML 2021, arXiv 2103.03230"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projector = mlp([student.pooled, settings.hidden, settings.hidden, settings.dim], bias=False)

    def loss_of_pair(self, first_BP: Tensor, second_BP: Tensor) -> Tensor:
        return cross_correlation(first_BP, second_BP, self.settings.redundancy)
