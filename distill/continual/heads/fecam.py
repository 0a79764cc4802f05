"""FeCAM: the distance of Mahalanobis to the class means, with a covariance for each class.

Features go through Tukey's power ``f^p`` first. Each covariance is shrunk, ``Σ_s = Σ + γ₁ · v · I + γ₂ · u · (1 − I)``
with v and u the means of its diagonal and of the rest, and scaled to a correlation
``C_ij = Σ_s,ij / √(Σ_s,ii Σ_s,jj)``, so that classes of different variance compare. The logit is
``−(x − m_c)ᵀ C_c⁻¹ (x − m_c)`` of the L2-normalized feature x and class mean m_c.

A class with a single image has the identity as correlation, as all have without variance. Serves and keeps K · D²
numbers with ``covariance: class`` (1,280 features: 6.6 MB a class in float32, 13 MB in the sums), D² with ``common``.

Paper: Goswami et al., FeCAM, arXiv 2309.14062; γ₁ = γ₂ = 1 and p = 0.5 from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from augment.base import error_at
from distill.continual.errors import ContinualError
from distill.continual.heads.base import FittedHead, Head, LabeledFeatures
from distill.continual.heads.linear_algebra import denoised, mean_square, solve, within_covariance
from distill.continual.heads.sums import Moments, Sums
from distill.models.closed_form_head import MahalanobisClassifier


def correlation(covariance_DD: Tensor, diagonal: float, rest: float) -> Tensor:
    """The shrunk covariance, scaled to ones on the diagonal.

    Args:
        covariance_DD: Σ, with a positive mean diagonal.
        diagonal: γ₁.
        rest: γ₂.

    Returns:
        C [D, D].
    """
    width = len(covariance_DD)
    eye_DD = torch.eye(width, dtype=covariance_DD.dtype)
    mean_rest = ((covariance_DD.sum() - covariance_DD.trace()) / max(1, width * (width - 1))).item()
    shrunk_DD = covariance_DD + diagonal * mean_square(covariance_DD) * eye_DD + rest * mean_rest * (1 - eye_DD)
    deviation_D = shrunk_DD.diagonal().sqrt()
    return shrunk_DD / (deviation_D[:, None] * deviation_D)


class FeCAM(Head):
    """``−(x − m_c)ᵀ C_c⁻¹ (x − m_c)`` with the correlation C_c of a class, or a common one.

    >>> import torch
    >>> from distill.continual.heads.fecam import FeCAM
    >>> head = FeCAM(FeCAM.Settings())
    >>> sums = head.new_sums(2)
    >>> features = torch.tensor([[4.0, 1.0], [9.0, 1.0], [1.0, 4.0], [1.0, 9.0]])
    >>> head.update(sums, features, torch.tensor([0, 0, 1, 1]), ["flat", "steep"])
    >>> head.fit(sums).logits(torch.tensor([[6.0, 1.0], [2.0, 3.0]])).argmax(1).tolist()
    [0, 1]
    """

    class Settings(Head.Settings):
        type: Literal["fecam"] = "fecam"
        covariance: Literal["class", "common"] = Field("class", description="one for each class, or one for all")
        tukey: float | None = Field(0.5, gt=0, description="power of the features, which must not be negative; none: 1")
        shrinkage: tuple[float, float] = Field(
            (1.0, 1.0), description="γ₁ of the diagonal and γ₂ of the rest, in units of their means"
        )

        @model_validator(mode="after")
        def _definite(self) -> FeCAM.Settings:
            if not 0 <= self.shrinkage[1] <= self.shrinkage[0] or self.shrinkage[0] == 0:
                raise error_at("shrinkage", f"expected γ₁ > 0 and 0 ≤ γ₂ ≤ γ₁, found {list(self.shrinkage)}")
            return self

    settings: Settings
    paper: ClassVar[str] = "Goswami et al. 2023, arXiv 2309.14062"

    @property
    def sums_key(self) -> str:
        key = "features" if self.settings.tukey is None else f"features to the power {self.settings.tukey:g}"
        return key if self.settings.covariance == "common" else f"{key} by class"

    @property
    def sums_moments(self) -> Moments:
        return self.settings.covariance

    def map(self, features_ND: Tensor) -> Tensor:
        features_ND = features_ND.detach().cpu().double()
        if self.settings.tukey is None:
            return features_ND
        if len(features_ND) and features_ND.min() < 0:
            text = f"the power {self.settings.tukey:g} needs features that are not negative, and one is"
            raise ContinualError(f"fecam: {text} {features_ND.min().item():.3g}; set tukey: null")
        return features_ND**self.settings.tukey

    def classifier(self, tensors: Mapping[str, Tensor], width: int) -> MahalanobisClassifier:
        means_KD, inverses_CDD = tensors["means"], tensors["inverses"]
        module = MahalanobisClassifier(width, len(means_KD), len(inverses_CDD), self.settings.tukey)
        module.load_state_dict({"means": means_KD, "inverses": inverses_CDD})
        return module

    def _fit(self, sums: Sums, held_out: LabeledFeatures | None, held_out_sums: Sums | None) -> FeCAMHead:
        means_KD = F.normalize(sums.means.T, dim=1)
        eye_DD = torch.eye(sums.width, dtype=torch.float64)
        covariances = [within_covariance(sums)] if self.settings.covariance == "common" else _by_class(sums)
        inverses = [solve(correlation(covariance, *self.settings.shrinkage), eye_DD) for covariance in covariances]
        return FeCAMHead(self, sums.classes, means_KD, torch.stack(inverses))


def _by_class(sums: Sums) -> list[Tensor]:
    covariances = []
    for count, mean_D, second_DD in zip(sums.counts.tolist(), sums.means.T, sums.seconds):
        covariance_DD = denoised(second_DD / count - mean_D.outer(mean_D), mean_square(second_DD) / count)
        covariances.append(covariance_DD)
    return covariances


class FeCAMHead(FittedHead):
    """A fitted ``fecam``: normalized means [K, D] and inverse correlations, [K, D, D] or [1, D, D]."""

    def __init__(self, head: FeCAM, classes: tuple[str, ...], means_KD: Tensor, inverses_KDD: Tensor):
        self.head, self.classes, self.means, self.inverses = head, classes, means_KD, inverses_KDD

    def scores(self, features_ND: Tensor) -> Tensor:
        features_ND = F.normalize(self.head.map(features_ND), dim=1)
        inverses = self.inverses.expand(len(self.classes), -1, -1)
        distances = []
        for mean_D, inverse_DD in zip(self.means, inverses):
            rest_ND = features_ND - mean_D
            distances.append((rest_ND @ inverse_DD * rest_ND).sum(1))
        return -torch.stack(distances, dim=1)

    def tensors(self) -> dict[str, Tensor]:
        return {"means": self.means.float(), "inverses": self.inverses.float()}
