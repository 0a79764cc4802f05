"""SLDA: linear discriminant analysis with one covariance within classes, which is shrunk towards a sphere.

``Σ = (G − Σ_c n_c μ_c μ_cᵀ) / N``, ``Λ = ((1 − ε) Σ + ε · mean diag(Σ) · I)⁻¹``, and then the nearest class mean in the
distance of Mahalanobis: ``w_c = Λ (μ_c − m)``, ``b_c = (mᵀ Λ m − μ_cᵀ Λ μ_c) / 2`` with m the mean of the class means,
which only takes away a part that is equal for all classes. Classes have equal priors.

Serves K · (D + 1) numbers and keeps n, S and G.

Paper: Hayes and Kanan, Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis, arXiv 1909.01520.
Deviations: ε is relative to the mean diagonal, so that it does not depend on the scale of the features, and 0.3 instead
of 1e-4, which held-out images choose (flowers61 and CIFAR-100 on a frozen EfficientNet-Lite0). Σ is the covariance of
all images about their own class means; in the paper it is updated image by image about means of the past, so that it
depends on their order.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.continual.heads.base import Head, LabeledFeatures
from distill.continual.heads.linear import LinearHead
from distill.continual.heads.linear_algebra import mean_square, solve, within_covariance
from distill.continual.heads.sums import Sums


def discriminant(means_DK: Tensor, covariance_DD: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Weight [K, D] and bias [K] of the linear discriminant.

    Args:
        means_DK: μ.
        covariance_DD: Σ, with a positive mean diagonal.
        shrinkage: ε.

    Returns:
        W and b.
    """
    sphere_DD = mean_square(covariance_DD) * torch.eye(len(covariance_DD), dtype=covariance_DD.dtype)
    center_D1 = means_DK.mean(dim=1, keepdim=True)
    weight_DK = solve((1 - shrinkage) * covariance_DD + shrinkage * sphere_DD, means_DK - center_D1)
    # mᵀΛm − μᵀΛμ = −(μ − m)ᵀ Λ (μ + m)
    bias_K = -(weight_DK * (means_DK + center_D1)).sum(0) / 2
    return weight_DK.T, bias_K


class SLDA(Head):
    """``−(f − μ_c)ᵀ Λ (f − μ_c) / 2`` with ``Λ = ((1 − ε) Σ + ε · mean diag(Σ) · I)⁻¹``.

    >>> import torch
    >>> from distill.continual.heads.slda import SLDA
    >>> head = SLDA(SLDA.Settings(shrinkage=0.1))
    >>> sums = head.new_sums(2)
    >>> wide = torch.tensor([[-9.0, 0.0], [9.0, 0.0], [-8.0, 1.0], [10.0, 1.0]])  # the first axis varies within
    >>> head.update(sums, wide, torch.tensor([0, 0, 1, 1]), ["low", "high"])
    >>> fitted = head.fit(sums)
    >>> [fitted.classes[k] for k in fitted.logits(torch.tensor([[5.0, 0.1], [-5.0, 0.9]])).argmax(1)]
    ['low', 'high']
    """

    class Settings(Head.Settings):
        type: Literal["slda"] = "slda"
        shrinkage: float = Field(
            0.3, gt=0, le=1, description="weight of the sphere with the covariance's mean diagonal; 1: nearest mean"
        )

    settings: Settings
    paper: ClassVar[str] = "Hayes and Kanan 2020, arXiv 1909.01520"

    def _fit(self, sums: Sums, held_out: LabeledFeatures | None, held_out_sums: Sums | None) -> LinearHead:
        return LinearHead(sums.classes, *discriminant(sums.means, within_covariance(sums), self.settings.shrinkage))
