"""Which network's features suit a task, without training: LogME, H-score, LEEP, nearest class mean.

All are computed from pooled features of labeled training images; the test split is not read.

Shape suffixes: N images, D feature width, K classes, Z classes of the network's own classifier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from distill.transfer.few_shot.prototype import Prototype

Score = Literal["logme", "h_score", "leep", "ncm"]
SCORES: tuple[Score, ...] = get_args(Score)
"""Of each, higher is better."""
STEPS, TOLERANCE = 100, 1e-5
"""Most steps of LogME's fixed point, and the relative change of α/β at which it stops."""


def logme(features_ND: Tensor, labels_N: Tensor, classes: int) -> float:
    """LogME: log evidence per image of Bayesian linear regression on one-hot labels, mean over classes with images.

    ``y ~ N(F w, β⁻¹)``, ``w ~ N(0, α⁻¹)``, with the α and β of the highest evidence::

        log p(y) = D/2 log α + N/2 log β − ½ log|αI + βFᵀF| − β/2 ‖Fm − y‖² − α/2 ‖m‖² − N/2 log 2π

    Paper: You et al., LogME: practical assessment of pre-trained models for transfer learning, arXiv 2102.11005. Its
    fixed point finds α and β, in the basis of the singular vectors.

    Args:
        features_ND: of the images.
        labels_N: int64 in 0 … K − 1.
        classes: K.

    Returns:
        The score; it may be negative.
    """
    f_ND = features_ND.double()
    images, width = f_ND.shape
    present = labels_N.unique()  # without an image, a class has no evidence
    basis_NR, values_R, _ = torch.linalg.svd(f_ND, full_matrices=False)
    squares_R = values_R.square()
    total = 0.0
    for y_N in one_hot(labels_N, classes)[:, present].double().T:
        x_R = (basis_NR.T @ y_N).square()
        outside = (y_N.square().sum() - x_R.sum()).clamp_min(0)
        alpha, beta = torch.tensor(1.0).double(), torch.tensor(1.0).double()
        for _ in range(STEPS):
            ratio = alpha / beta
            used = (squares_R / (squares_R + ratio)).sum()
            norm = (squares_R * x_R / (squares_R + ratio).square()).sum().clamp_min(1e-12)
            residual = ((x_R / (1 + squares_R / ratio).square()).sum() + outside).clamp_min(1e-12)
            alpha, beta = used / norm, (images - used).clamp_min(1e-12) / residual
            if abs(alpha / beta - ratio) <= TOLERANCE * ratio:
                break
        ratio = alpha / beta
        norm = (squares_R * x_R / (squares_R + ratio).square()).sum()
        residual = (x_R / (1 + squares_R / ratio).square()).sum() + outside
        logdet = (alpha + beta * squares_R).log().sum() + (width - len(squares_R)) * alpha.log()
        density = width * alpha.log() + images * beta.log() - logdet - beta * residual - alpha * norm
        total += 0.5 * (density.item() / images - math.log(2 * math.pi))
    return total / len(present)


def h_score(features_ND: Tensor, labels_N: Tensor, classes: int) -> float:
    """Regularized H-score: ``(1 − a) tr(Σ_a⁻¹ Σ_z)``, Σ_a the covariance of the features with Ledoit and Wolf's
    shrinkage a, Σ_z that of the class means.

    Papers: Bao et al., An information-theoretic approach to transferability, ICIP 2019; Ibrahim et al., Newer is not
    always better, arXiv 2110.06893. Without shrinkage, it is K − 1 for every network with D ≥ N.

    Args:
        features_ND: of the images.
        labels_N: int64 in 0 … K − 1.
        classes: K.

    Returns:
        The score in [0, K − 1]; 0 for features that do not vary.
    """
    from sklearn.covariance import ledoit_wolf

    f_ND = features_ND.double()
    f_ND = f_ND - f_ND.mean(0)
    if not f_ND.any():
        return 0.0
    shrunk, shrinkage = ledoit_wolf(f_ND.numpy(), assume_centered=True)
    onehot_NK = one_hot(labels_N, classes).double()
    means_KD = onehot_NK.T @ f_ND / onehot_NK.sum(0).clamp_min(1)[:, None]
    z_ND = means_KD[labels_N]
    # tr(Σ_a⁻¹ Σ_z) = mean over images of zᵀ Σ_a⁻¹ z
    solved_DN = torch.linalg.lstsq(torch.from_numpy(shrunk), z_ND.T).solution
    return (1 - float(shrinkage)) * (z_ND.T * solved_DN).sum().item() / len(f_ND)


def leep(logits_NZ: Tensor, labels_N: Tensor, classes: int) -> float:
    """LEEP: mean log-likelihood of the labels, predicted through the network's own classes.

    ``1/N Σ_i log Σ_z P(y_i | z) θ_z(x_i)``, θ the network's probabilities and ``P(y | z)`` their empirical joint
    distribution, divided by its marginal.

    Paper: Nguyen et al., LEEP: a new measure to evaluate transferability of learned representations, arXiv 2002.12462.

    Args:
        logits_NZ: of the network's own classifier.
        labels_N: int64 in 0 … K − 1.
        classes: K.

    Returns:
        The score, at most 0.
    """
    p_NZ = logits_NZ.double().softmax(1)
    joint_KZ = one_hot(labels_N, classes).double().T @ p_NZ / len(p_NZ)
    given_KZ = joint_KZ / joint_KZ.sum(0).clamp_min(1e-300)
    return (p_NZ * given_KZ[labels_N]).sum(1).clamp_min(1e-300).log().mean().item()


def nearest_class_mean(features_ND: Tensor, labels_N: Tensor, held_out_N: Tensor, classes: Sequence[str]) -> float:
    """Accuracy of nearest class means on held-out training images.

    Args:
        features_ND: of the images.
        labels_N: int64 indices into ``classes``.
        held_out_N: bool; the means are of the others. Images of a class without another image are not counted.
        classes: names.

    Returns:
        A fraction; NaN if no image is held out.
    """
    kept_N = ~held_out_N
    present = labels_N[kept_N].unique()
    tested_N = held_out_N & torch.isin(labels_N, present)
    if len(present) < 2 or not tested_N.any():
        return math.nan
    new = torch.full((len(classes),), -1)
    new[present] = torch.arange(len(present))
    names = [classes[index] for index in present.tolist()]
    head = Prototype(Prototype.Settings()).fit(features_ND[kept_N], new[labels_N[kept_N]], names)
    predicted = head.logits(features_ND[tested_N]).argmax(1)
    return (predicted == new[labels_N[tested_N]]).double().mean().item()
