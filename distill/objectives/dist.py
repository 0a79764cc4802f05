"""DIST: correlation of the student's class probabilities with the teacher's, along each sample and along each class.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, same_classes, same_shape
from distill.objectives.logits import LogitSettings
from distill.objectives.logits import standardize as standardized
from distill.objectives.ranks import gather_batch


def pearson(a: Tensor, b: Tensor, dim: int, eps: float = 1e-8) -> Tensor:
    """Pearson's correlation along ``dim``: the cosine of the centered vectors; 0 if one of them is constant.

    Args:
        a: any shape.
        b: the same shape.
        dim: the axis to correlate along.
        eps: added to each norm.

    Returns:
        The shape of ``a`` without ``dim``.
    """
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    # The product of the squared norms would underflow for flat softmax rows; the norms do not.
    return (a * b).sum(dim) / ((a.norm(dim=dim) + eps) * (b.norm(dim=dim) + eps))


def dist(
    student_BK: Tensor,
    teacher_BK: Tensor,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    standardize: bool = False,
) -> Tensor:
    """Relations within samples and within classes.

    With ``p = softmax(z / T)`` [B, K] over the batch of all ranks::

        L = T² · (β · (1 − mean_b ρ(p_s[b, :], p_t[b, :])) + γ · (1 − mean_k ρ(p_s[:, k], p_t[:, k])))

    with ρ Pearson's correlation. Zero (to 1e-6) if student equals teacher, unless a row or column is constant: its
    correlation is 0. For a batch of one, the last term is γ T², without gradient.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits; no gradient flows into them.
        beta: weight of the relations between classes, along each sample; 2 on CIFAR.
        gamma: weight of the relations between samples, along each class; 2 on CIFAR.
        temperature: T; 4 on CIFAR.
        standardize: standardize each row of logits first.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("logits", student_BK, teacher_BK)
    student_BK, teacher_BK = student_BK.float(), teacher_BK.detach().float()
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    student_BK, teacher_BK = (gather_batch(z / temperature).softmax(dim=1) for z in (student_BK, teacher_BK))
    within_samples = 1 - pearson(student_BK, teacher_BK, dim=1).mean()
    within_classes = 1 - pearson(student_BK, teacher_BK, dim=0).mean()
    return temperature**2 * (beta * within_samples + gamma * within_classes)


class DIST(Objective):
    """Correlations in place of a divergence, for teachers much stronger than the student. See :func:`dist`.

    Paper: Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536; there with a
    cross-entropy of weight 1, β = γ = 1 and T 1 on ImageNet, β = γ = 2 and T 4 on CIFAR-100.

    Example:
        >>> import torch, distill
        >>> dist = distill.create_objective("dist")
        >>> student, teacher = distill.Features(logits=torch.eye(2)), distill.Features(logits=1 - torch.eye(2))
        >>> round(dist(student, teacher, distill.Targets(labels=torch.tensor([0, 1]))).item(), 4)  # all ρ = −1
        4.0
    """

    class Settings(LogitSettings):
        type: Literal["dist"] = "dist"
        temperature: float = Field(1.0, gt=0, description="T; 4 on CIFAR")
        beta: float = Field(1.0, ge=0, description="weight of the relations along each sample; 2 on CIFAR")
        gamma: float = Field(1.0, ge=0, description="weight of the relations along each class; 2 on CIFAR")

    paper: ClassVar[str] = "Huang et al., NeurIPS 2022, arXiv 2205.10536"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        s = self.settings
        return dist(student_BK, teacher_BK, s.beta, s.gamma, s.temperature, s.standardize)
