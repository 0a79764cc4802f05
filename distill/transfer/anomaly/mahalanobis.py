"""Mahalanobis distance of the pooled features from those of normal images.

Shape suffixes: N normal images, B images, D width, R directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.transfer.anomaly.base import AnomalyError, AnomalyMethod

LEAST = 1e-12
"""Least variance, where all normal images have the same features: any other image is then far from them."""


class Mahalanobis(AnomalyMethod):
    """``d²(f) = (f − μ)ᵀ Σ⁻¹ (f − μ)``, with the covariance shrunk towards ``μ_λ I`` (Ledoit and Wolf, 2004).

    The R directions of the largest variance are kept, and all others have the variance of the shrinkage alone:
    ``d² = Σ_r z_r² / λ_r + (‖f − μ‖² − Σ_r z_r²) / λ₀``, exact for R ≥ N − 1. So D² numbers are never stored.

    Paper: Rippel et al., ICPR 2020, arXiv 2005.14140; they use a Gaussian of pooled features for every stage, this has
    the last one. It has no map of where the anomaly is.
    """

    class Settings(AnomalyMethod.Settings):
        type: Literal["mahalanobis"] = "mahalanobis"
        directions: int = Field(100, ge=1, le=4096, description="R, directions of the largest variance that are kept")

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    settings: Settings

    def fit(self, outputs: Iterable[Features], seed: int) -> dict[str, Tensor]:
        from sklearn.covariance import ledoit_wolf_shrinkage

        x_ND = torch.cat([_pooled(each) for each in outputs]).double()
        if len(x_ND) < 2:
            raise AnomalyError(f"mahalanobis needs two normal images or more, not {len(x_ND)}")
        mean_D = x_ND.mean(0)
        x_ND = x_ND - mean_D
        shrinkage = float(ledoit_wolf_shrinkage(x_ND.numpy(), assume_centered=True))
        average = float(x_ND.square().mean())
        _, singular, directions = torch.linalg.svd(x_ND, full_matrices=False)
        kept = min(self.settings.directions, len(x_ND) - 1, len(directions))
        floor = max(shrinkage * average, 1e-6 * average, LEAST)
        variances = (1 - shrinkage) * singular[:kept].square() / len(x_ND) + floor
        return {
            "mean": mean_D.float(),
            "directions": directions[:kept].float().contiguous(),
            "variances": variances.float(),
            "floor": torch.tensor(floor).float(),
        }

    def score(
        self, output: Features, state: Mapping[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        x_BD = _pooled(output) - state["mean"]
        z_BR = x_BD @ state["directions"].T
        rest_B = (x_BD.square().sum(1) - z_BR.square().sum(1)).clamp(min=0)
        return (z_BR.square() / state["variances"]).sum(1) + rest_B / state["floor"], None


def _pooled(output: Features) -> Tensor:
    assert output.pooled is not None
    return output.pooled.float()
