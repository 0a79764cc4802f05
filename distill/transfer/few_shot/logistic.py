"""Logistic regression with an L2 penalty, for few images.

``min_{W, b} Σ_i CE(W f_i + b, y_i) + λ s/2 ‖W‖²``, s the mean squared norm of the centered features, so that λ does not
depend on their scale; the bias has no penalty. With ``C = 1/(λ s)`` it is the problem of scikit-learn's
``LogisticRegression``. It is solved for all episodes at once by Nesterov's accelerated gradient with restarts
(O'Donoghue and Candès, arXiv 1204.3982), on centered features. Problems that have not converged after ``STEPS`` steps
are counted, and the report names their number.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.transfer.few_shot.base import FewShotHead, Support, largest_curvature

STEPS, TOLERANCE = 1000, 1e-6
"""Most steps, and the largest entry of the gradient, relative to the number of images, at which it stops."""


class Logistic(FewShotHead):
    """``min Σ CE(W f + b, y) + λ s/2 ‖W‖²``.

    >>> import torch
    >>> from distill.transfer.few_shot.logistic import Logistic
    >>> head = Logistic(Logistic.Settings(penalty=0.1))
    >>> fitted = head.fit(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 0, 1]), ["ash", "oak"])
    >>> fitted.logits(torch.tensor([[0.5], [5.0]])).argmax(1).tolist()
    [0, 1]
    """

    class Settings(FewShotHead.Settings):
        type: Literal["logistic"] = "logistic"
        penalty: float = Field(0.1, gt=0, description="λ, in units of the mean squared norm of the centered features")

    settings: Settings
    paper: ClassVar[str] = "Tian et al. 2020, arXiv 2003.11539"

    def solve(self, support: Support) -> tuple[Tensor, Tensor]:
        y_ENK = support.onehot
        mean_E1M = support.features.mean(1, keepdim=True)
        f_ENM = support.features - mean_E1M
        squares_E = f_ENM.square().sum((1, 2)) / f_ENM.shape[1]
        penalty_E = self.settings.penalty * torch.where(squares_E > 0, squares_E, 1.0)
        largest_E = largest_curvature(f_ENM)
        # A constant as large as the features gives the bias a curvature like theirs.
        constant_E = (largest_E / f_ENM.shape[1]).sqrt().clamp_min(1e-6)
        f_ENM = torch.cat([f_ENM, constant_E[:, None, None].expand(-1, f_ENM.shape[1], 1)], dim=2)
        penalty_EM = penalty_E[:, None].repeat(1, f_ENM.shape[2])
        penalty_EM[:, -1] = 0
        step_E11 = 1 / (0.5 * largest_curvature(f_ENM) + penalty_E)[:, None, None]

        def gradient(w_EKM: Tensor) -> Tensor:
            p_ENK = (f_ENM @ w_EKM.mT).softmax(2)
            return (p_ENK - y_ENK).mT @ f_ENM + penalty_EM[:, None] * w_EKM

        w_EKM = f_ENM.new_zeros(len(f_ENM), y_ENK.shape[2], f_ENM.shape[2])
        ahead_EKM, t_E11 = w_EKM, torch.ones_like(step_E11)
        tolerance_E = TOLERANCE * f_ENM.shape[1] * largest_E.sqrt().clamp_min(1e-6)
        for _ in range(STEPS):
            slope_EKM = gradient(ahead_EKM)
            if bool((slope_EKM.abs().amax((1, 2)) <= tolerance_E).all()):
                break
            new_EKM = ahead_EKM - step_E11 * slope_EKM
            moved_EKM = new_EKM - w_EKM
            uphill_E11 = (slope_EKM * moved_EKM).sum((1, 2), keepdim=True) > 0
            next_E11 = torch.where(uphill_E11, 1.0, (1 + (1 + 4 * t_E11.square()).sqrt()) / 2)
            ahead_EKM = new_EKM + torch.where(uphill_E11, 0.0, (t_E11 - 1) / next_E11) * moved_EKM
            w_EKM, t_E11 = new_EKM, next_E11
        else:
            self.unsolved += int((gradient(ahead_EKM).abs().amax((1, 2)) > tolerance_E).sum())
        weight_EKM = ahead_EKM[..., :-1]
        bias_EK = ahead_EKM[..., -1] * constant_E[:, None] - (mean_E1M @ weight_EKM.mT)[:, 0]
        return weight_EKM, bias_EK
