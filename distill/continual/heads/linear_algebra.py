"""Linear systems with covariance matrices, which have few images, constant features and rounding errors."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.continual.heads.sums import Sums

NOISE = 1e-9
"""Fraction of the mean square of the features below which their variance is rounding error, and counts as zero."""


def within_covariance(sums: Sums) -> Tensor:
    """Covariance within classes ``Σ = (G − Σ_c n_c μ_c μ_cᵀ) / N``, [D, D] float64; see :func:`denoised`."""
    scatter_DD = sums.seconds - (sums.firsts / sums.counts) @ sums.firsts.T
    return denoised(scatter_DD / sums.images, mean_square(sums.seconds) / sums.images)


def denoised(covariance_DD: Tensor, power: float) -> Tensor:
    """The covariance, made symmetric; the identity, scaled by ``power``, if it is zero but for rounding.

    Without any variance (one image for each class, constant features), no direction is known to vary more than
    another, so that distances are Euclidean.

    Args:
        covariance_DD: difference of second moments.
        power: mean square of the features.

    Returns:
        [D, D] with a positive mean diagonal.
    """
    if mean_square(covariance_DD) <= NOISE * power:
        return torch.eye(len(covariance_DD), dtype=covariance_DD.dtype) * (power or 1.0)
    return (covariance_DD + covariance_DD.T) / 2


def mean_square(matrix_DD: Tensor) -> float:
    """Mean of the diagonal."""
    return matrix_DD.diagonal().mean().item()


def solve(matrix_DD: Tensor, right_DK: Tensor) -> Tensor:
    """``M⁻¹ R`` of a symmetric M without negative eigenvalues.

    By Cholesky. Where rounding makes M indefinite, eigenvalues are raised to 1e-12 of the largest.

    Args:
        matrix_DD: M.
        right_DK: R.

    Returns:
        [D, K].
    """
    factor_DD, failed = torch.linalg.cholesky_ex(matrix_DD)
    if not failed:
        return torch.cholesky_solve(right_DK, factor_DD)
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD)
    values_D = values_D.clamp_min(1e-12 * values_D[-1].item())
    return vectors_DD @ ((vectors_DD.T @ right_DK) / values_D[:, None])
