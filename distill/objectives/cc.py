"""Correlation congruence: the kernel matrix of a batch's samples matches the teacher's.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P embedded width.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher
from distill.objectives.ranks import gather_batch


def kernel(rows_GP: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """[G, G] Taylor expansion of the Gaussian kernel of unit vectors.

    ``k(x, y) = exp(−2γ) Σ_{p=0}^{order} (2γ)^p / p! · (x·y)^p`` for x, y divided by their lengths.

    Args:
        rows_GP: embedded features.
        gamma: γ.
        order: the highest power of the expansion.

    Returns:
        [G, G].
    """
    unit_GP = F.normalize(rows_GP)
    cosine_GG = unit_GP @ unit_GP.T
    terms = [(2 * gamma) ** p / math.factorial(p) * cosine_GG**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)  # type: ignore[return-value]


def cc(student_BP: Tensor, teacher_BP: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """``‖k(S) − k(T)‖² / G²`` over the batch of all ranks. Zero if all cosines are equal.

    Args:
        student_BP: embedded student features.
        teacher_BP: embedded teacher features; gradient flows into them too.
        gamma: γ of the Gaussian kernel.
        order: order of its Taylor expansion.

    Returns:
        A scalar with a graph.
    """
    kernel_s, kernel_t = (kernel(gather_batch(rows.float()), gamma, order) for rows in (student_BP, teacher_BP))
    return F.mse_loss(kernel_s, kernel_t)


class CC(Objective):
    """Correlation congruence on embedded pooled features. See :func:`cc`.

    A trained linear layer per network maps its feature to width ``dim``.

    Paper: Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019, arXiv 1904.01802: γ 0.4, second
    order, weight 0.02, together with KD.

    Deviation: kernels are those of the batch of all ranks, so that the loss does not depend on their number.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> shapes = FeatureShapes(classes=2, pooled=3)
        >>> cc = distill.create_objective("cc", student=shapes, teacher=shapes)
        >>> cc.teacher_embedding.load_state_dict(cc.student_embedding.state_dict())
        <All keys matched successfully>
        >>> features = distill.Features(pooled=torch.eye(3))
        >>> cc(features, features, distill.Targets(labels=torch.tensor([0, 1, 0]))).item()
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["cc"] = "cc"
        weight: float = Field(0.02, ge=0, description="factor of this term in the sum")
        dim: int = Field(128, gt=0, description="width of the embedded features")
        gamma: float = Field(0.4, gt=0, description="γ of the Gaussian kernel")
        order: int = Field(2, ge=1, le=8, description="order of its Taylor expansion")

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Peng et al., ICCV 2019, arXiv 1904.01802"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.student_embedding = nn.Linear(student.pooled, settings.dim)
        self.teacher_embedding = nn.Linear(require_teacher(teacher).pooled, settings.dim)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        rows = self.student_embedding(student_BD), self.teacher_embedding(teacher_BD)
        return cc(*rows, self.settings.gamma, self.settings.order)
