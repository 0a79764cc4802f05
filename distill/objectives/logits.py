"""Shared functions of losses on logits: standardization and the divergence at a temperature.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.objectives.base import Objective
from distill.objectives.ranks import weighed


class LogitSettings(Objective.Settings):
    """Settings shared by losses on logits."""

    temperature: float = Field(4.0, gt=0, description="T; 4 is usual for small images, 1 for ImageNet")
    standardize: bool = Field(
        False, description="standardize each row of logits first; its paper uses T 2 and weight 9"
    )


def standardize(logits_BK: Tensor) -> Tensor:
    """Logit standardization: each row shifted to mean 0 and scaled to standard deviation 1.

    ``z' = (z − mean(z)) / (std(z) + 1e-7)``, with the unbiased standard deviation. The student then
    matches the teacher's logits up to shift and scale. The gradient is proportional to 1 / std: rows of equal logits,
    as from a head of zero weights, multiply it by 1e7.

    Paper: Sun et al., Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv 2403.01427.

    Raises:
        ValueError: there is only one class.
    """
    if logits_BK.shape[1] < 2:
        raise ValueError(
            f"logits of shape {tuple(logits_BK.shape)} cannot be standardized: at least two classes are needed"
        )
    centered_BK = logits_BK - logits_BK.mean(dim=1, keepdim=True)
    return centered_BK / (logits_BK.std(dim=1, keepdim=True) + 1e-7)


def divergence(student_BK: Tensor, teacher_BK: Tensor, temperature: float, weights_B: Tensor | None = None) -> Tensor:
    """``T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))``, weighted by sample, mean over the batch.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits.
        temperature: T.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.
    """
    log_student_BK = F.log_softmax(student_BK / temperature, dim=1)
    log_teacher_BK = F.log_softmax(teacher_BK / temperature, dim=1)
    of_sample_B = F.kl_div(log_student_BK, log_teacher_BK, log_target=True, reduction="none").sum(1)
    return temperature**2 * weighed(of_sample_B, weights_B).mean()


def log_others(logits_BK: Tensor, target_B: Tensor) -> Tensor:
    """Log of the softmax over the classes other than ``target_B``; 0 at the target, so that its terms there are 0."""
    target_B1 = target_B[:, None]
    return F.log_softmax(logits_BK.scatter(1, target_B1, -torch.inf), dim=1).scatter(1, target_B1, 0.0)


def two_classes(name: str, logits_BK: Tensor) -> None:
    """Raises ``ValueError`` if there is only one class."""
    if logits_BK.shape[1] < 2:
        raise ValueError(
            f"{name} compares the classes other than the true one: it needs two classes, not {logits_BK.shape[1]}"
        )
