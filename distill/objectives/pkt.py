"""Probabilistic knowledge transfer: matches the conditional probabilities of pairs of samples with the teacher's.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields
from distill.objectives.ranks import gather_batch


def pkt(student_BD: Tensor, teacher_BE: Tensor, eps: float = 1e-7) -> Tensor:
    """``mean(P_t · log((P_t + ε) / (P_s + ε)))`` over the pairs of the batch of all ranks.

    ``P[i, j] = K[i, j] / Σ_j K[i, j]`` with the cosine kernel ``K = (1 + cos(f_i, f_j)) / 2``, j = i
    included. Zero if the two networks' cosines are equal. Widths may differ.

    Args:
        student_BD: student features.
        teacher_BE: teacher features; no gradient flows into them.
        eps: ε.

    Returns:
        A scalar with a graph.
    """
    probabilities = []
    for rows in (student_BD, teacher_BE.detach()):
        unit_GD = F.normalize(gather_batch(rows.float()), eps=eps)
        kernel_GG = (unit_GD @ unit_GD.T + 1) / 2
        probabilities.append(kernel_GG / kernel_GG.sum(dim=1, keepdim=True).clamp(min=eps))
    p_s, p_t = probabilities
    return (p_t * ((p_t + eps) / (p_s + eps)).log()).mean()


class PKT(Objective):
    """Probabilistic knowledge transfer on pooled features. See :func:`pkt`.

    Paper: Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, arXiv
    1803.10837; weight 30000, for the mean over pairs.

    Deviation: pairs are those of the batch of all ranks, so that the loss does not depend on their number.

    Example:
        >>> import torch, distill
        >>> pkt = distill.create_objective("pkt")
        >>> student, teacher = distill.Features(pooled=torch.eye(3)), distill.Features(pooled=2 * torch.eye(3))
        >>> pkt(student, teacher, distill.Targets(labels=torch.tensor([0, 1, 0]))).item()  # lengths do not count
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["pkt"] = "pkt"
        weight: float = Field(30000.0, ge=0, description="factor of this term in the sum")

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Passalis and Tefas, ECCV 2018, arXiv 1803.10837"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return pkt(*matched_fields(student, teacher, "pooled"))
