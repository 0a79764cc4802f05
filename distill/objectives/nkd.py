"""Normalized knowledge distillation: the teacher's probability of the true class, and its renormalized other classes.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import matched_fields, same_classes, same_shape
from distill.objectives.logits import LogitSettings, log_others, two_classes
from distill.objectives.logits import standardize as standardized
from distill.objectives.ranks import mean_where


def nkd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    gamma: float = 1.5,
    temperature: float = 1.0,
    standardize: bool = False,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Soft target loss and normalized non-target loss, mean over the labeled samples.

    ``L = −p_t,y · log p_s,y − γ T² Σ_{k≠y} p̂_t,k log p̂_s,k`` with ``p = softmax(z)`` and ``p̂`` the softmax of z / T
    over the classes other than y. The non-target part is a cross-entropy, so its minimum is γ T² times the teacher's
    entropy there, not zero; the first term is zero only for p_s,y = 1.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits; no gradient flows into them.
        labels_B: true classes; ``UNLABELED`` samples are left out.
        gamma: γ.
        temperature: T of the non-target part.
        standardize: standardize each row of logits first.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    same_shape("logits", student_BK, teacher_BK)
    two_classes("nkd", student_BK)
    student_BK, teacher_BK = student_BK.float(), teacher_BK.detach().float()
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    target_B = labels_B.clamp(min=0)
    target_B1 = target_B[:, None]
    p_t_B1 = teacher_BK.softmax(dim=1).gather(1, target_B1)
    target = -(p_t_B1 * F.log_softmax(student_BK, dim=1).gather(1, target_B1)).squeeze(1)
    log_q_s, log_q_t = (log_others(logits / temperature, target_B) for logits in (student_BK, teacher_BK))
    # log_others is 0 at the target, so its exp is no probability there, but the product with log_q_s = 0 is 0.
    others = -(log_q_t.exp() * log_q_s).sum(1)
    return mean_where(target + gamma * temperature**2 * others, labels_B != UNLABELED, weights_B)


class NKD(Objective):
    """Normalized knowledge distillation. See :func:`nkd`.

    Paper: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels, ICCV 2023, arXiv 2303.13005; there with a cross-entropy of weight 1.

    Example:
        >>> import torch, distill
        >>> nkd = distill.create_objective("nkd")
        >>> features = distill.Features(logits=torch.zeros(1, 2))
        >>> round(nkd(features, features, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # ½ log 2
        0.3466
    """

    class Settings(LogitSettings):
        type: Literal["nkd"] = "nkd"
        temperature: float = Field(1.0, gt=0, description="T of the non-target part")
        gamma: float = Field(1.5, ge=0, description="weight of the non-target part")

        @property
        def needs_one_class(self) -> bool:
            return True

    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Yang et al., ICCV 2023, arXiv 2303.13005"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        s = self.settings
        return nkd(student_BK, teacher_BK, batch.labels, s.gamma, s.temperature, s.standardize, batch.weights)
