"""Decoupled knowledge distillation: separate weights for the true class and for the distribution over the others.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import matched_fields, same_classes, same_shape
from distill.objectives.logits import LogitSettings, log_others, two_classes
from distill.objectives.logits import standardize as standardized
from distill.objectives.ranks import mean_where


def dkd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    labels_B: Tensor,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    standardize: bool = False,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Target-class and non-target-class distillation, mean over the labeled samples.

    With ``p = softmax(z / T)``, ``b = (p_y, 1 − p_y)`` and ``p̂`` the softmax over the classes other than y::

        L = T² · (α · KL(b_t ‖ b_s) + β · KL(p̂_t ‖ p̂_s))

    With ``β = 1 − p_t,y`` and α = 1 this is KD. Zero if student equals teacher, or no sample is labeled.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits; no gradient flows into them.
        labels_B: true classes; ``UNLABELED`` samples are left out.
        alpha: weight of the target-class part.
        beta: weight of the non-target part: 8 on CIFAR-100 (2 for ResNet-56/110 teachers, 6 for VGG and WRN pairs), 0.5
            on ImageNet with T 1.
        temperature: T.
        standardize: standardize each row of logits first.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ, or there is only one class.
    """
    same_shape("logits", student_BK, teacher_BK)
    two_classes("dkd", student_BK)
    student_BK, teacher_BK = student_BK.float(), teacher_BK.detach().float()
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    target_B = labels_B.clamp(min=0)
    parts = []
    for logits_BK in (student_BK / temperature, teacher_BK / temperature):
        log_p_BK = F.log_softmax(logits_BK, dim=1)
        log_target_B1 = log_p_BK.gather(1, target_B[:, None])
        # log(1 − p_y) as the log-sum of the others, which is accurate even if p_y rounds to 1.
        others_BK = log_p_BK.scatter(1, target_B[:, None], -torch.inf)
        log_rest_B1 = others_BK.logsumexp(dim=1, keepdim=True)
        parts.append((torch.cat([log_target_B1, log_rest_B1], dim=1), log_others(logits_BK, target_B)))
    (log_b_s, log_q_s), (log_b_t, log_q_t) = parts
    target = F.kl_div(log_b_s, log_b_t, log_target=True, reduction="none").sum(1)
    others = F.kl_div(log_q_s, log_q_t, log_target=True, reduction="none").sum(1)
    return temperature**2 * mean_where(alpha * target + beta * others, labels_B != UNLABELED, weights_B)


class DKD(Objective):
    """Decoupled knowledge distillation. See :func:`dkd`.

    Paper: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679; there with a cross-entropy of
    weight 1 and a linear warm-up over the first 20 of 240 epochs (``schedule: {warmup: 20}``).

    Example:
        >>> import torch, distill
        >>> dkd = distill.create_objective("dkd")
        >>> features = distill.Features(logits=torch.tensor([[2.0, 0.0, -1.0]]))
        >>> dkd(features, features, distill.Targets(labels=torch.tensor([0]))).item()
        0.0
    """

    class Settings(LogitSettings):
        type: Literal["dkd"] = "dkd"
        alpha: float = Field(1.0, ge=0, description="weight of the target-class part")
        beta: float = Field(8.0, ge=0, description="weight of the non-target part; 0.5 on ImageNet")

        @property
        def needs_one_class(self) -> bool:
            return True

    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhao et al., CVPR 2022, arXiv 2203.08679"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        s, labels_B = self.settings, batch.labels
        return dkd(student_BK, teacher_BK, labels_B, s.alpha, s.beta, s.temperature, s.standardize, batch.weights)
