"""LP++: a linear probe whose weights are blended with text embeddings of the classes.

``z_k = fᵀ (w_k + α_k t_k)``, mean cross-entropy, full batch. ``w_k`` starts as the mean support feature of its class
and takes gradient steps of 4N/λ_max(FᵀF) with momentum 0.9; every tenth step, α takes one of
N/(4 max_k Σ_i (f_i·t_k)²), from α₀ = 250 · the mean of w_j·t_k at the start. So nothing is searched for.

It folds: ``W = w + α t``, without a bias, f divided by its mean norm over the support (the paper divides each image's
by its own, which no linear layer can; without a bias, the predicted class is the same).

Without text embeddings there is no α, and it is logistic regression that stops early, from the class means.

Deviations from the authors' code: the gradient of α is that of one step (theirs is never set to zero and sums up over
all steps so far), classes may have different numbers of images, there is no bias, and the last step is kept, not the
best on validation images.

Paper: Huang et al., LP++: A surprisingly strong linear probe for few-shot CLIP, arXiv 2404.02285.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from augment.base import absolute
from distill.transfer.few_shot.base import FewShotHead, Support, largest_curvature

MOMENTUM, EVERY, FIRST = 0.9, 10, 250.0
"""Momentum of w, steps of w for one of α, and the factor of α₀."""


class LpPlus(FewShotHead):
    """``z_k = fᵀ (w_k + α_k t_k)``.

    >>> import torch
    >>> from distill.transfer.few_shot.lp_plus import LpPlus
    >>> head = LpPlus(LpPlus.Settings(steps=20))
    >>> fitted = head.fit(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), ["ash", "oak"])
    >>> fitted.logits(torch.tensor([[0.9, 0.2], [0.1, 0.7]])).argmax(1).tolist()
    [0, 1]
    """

    class Settings(FewShotHead.Settings):
        type: Literal["lp_plus"] = "lp_plus"
        steps: int = Field(300, ge=1, description="steps of gradient descent")
        text: Annotated[Path, AfterValidator(absolute)] | None = Field(
            None,
            description="safetensors file with a tensor [D] for each class name, in the space of the features (an "
            "image-text backbone); none: without text",
        )

    settings: Settings
    paper: ClassVar[str] = "Huang et al. 2024, arXiv 2404.02285"
    reads_text: ClassVar[bool] = True

    def solve(self, support: Support) -> tuple[Tensor, Tensor]:
        norm_E11 = support.features.norm(dim=2).mean(1)[:, None, None].clamp_min(1e-12)
        f_ENM, y_ENK = support.features / norm_E11, support.onehot
        images = f_ENM.shape[1]
        largest_E11 = largest_curvature(f_ENM)[:, None, None].clamp_min(1e-12)
        step_E11 = 4 * images / largest_E11
        w_EKM = support.means / norm_E11
        velocity_EKM = torch.zeros_like(w_EKM)
        of_text_ENK, alpha_E1K, alpha_step_E11 = torch.zeros_like(y_ENK), torch.zeros_like(y_ENK[:, :1]), None
        if support.text is not None:
            unit_EKM = support.text / support.text.norm(dim=2, keepdim=True).clamp_min(1e-12)
            of_text_ENK = f_ENM @ unit_EKM.mT
            alpha_E1K = alpha_E1K + FIRST * (w_EKM @ unit_EKM.mT).mean((1, 2), keepdim=True)
            alpha_step_E11 = images / (4 * of_text_ENK.square().sum(1).amax(1)).clamp_min(1e-12)[:, None, None]
        for number in range(1, self.settings.steps + 1):
            error_ENK = ((f_ENM @ w_EKM.mT + alpha_E1K * of_text_ENK).softmax(2) - y_ENK) / images
            velocity_EKM = MOMENTUM * velocity_EKM + error_ENK.mT @ f_ENM
            w_EKM = w_EKM - step_E11 * velocity_EKM
            if alpha_step_E11 is not None and number % EVERY == 0:
                alpha_E1K = alpha_E1K - alpha_step_E11 * (error_ENK * of_text_ENK).sum(1, keepdim=True)
        if support.text is not None:
            w_EKM = w_EKM + alpha_E1K.mT * unit_EKM
        return w_EKM / norm_E11, w_EKM.new_zeros(w_EKM.shape[:2])
