"""Relational knowledge distillation: distances and angles between samples match the teacher's.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields
from distill.objectives.ranks import gather_batch


def lengths(rows_GD: Tensor) -> Tensor:
    """[G, G] Euclidean distances; exactly 0 between equal rows, and the gradient there is 0."""
    # Not by a matrix product, whose rounding would give a nonzero distance of a sample to itself.
    return torch.cdist(rows_GD, rows_GD, compute_mode="donot_use_mm_for_euclid_dist")


def distances(length_GG: Tensor) -> Tensor:
    """[G, G] lengths divided by the mean of those that are not 0."""
    return length_GG / (length_GG.sum() / (length_GG > 0).sum().clamp(min=1)).clamp(min=1e-12)


def angles(length_GG: Tensor) -> Tensor:
    """[G, G, G] cosines: ``[i, j, k]`` of the angle at sample i between j and k; 0 if j or k coincides with i.

    Computed by the law of cosines, ``(l_ij² + l_ik² − l_jk²) / 2 l_ij l_ik``, at a cost independent of the features'
    width.
    """
    square_GG, apart_GG = length_GG.square(), length_GG > 0
    inverse_GG = length_GG.where(apart_GG, torch.inf).reciprocal()
    cosine_GGG = square_GG[:, :, None] + square_GG[:, None, :] - square_GG
    return cosine_GGG * (0.5 * inverse_GG[:, :, None] * inverse_GG[:, None, :])


def rkd(student_BD: Tensor, teacher_BE: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """``distance · h(d_s, d_t) + angle · h(a_s, a_t)`` over the batch of all ranks, h the mean smooth L1 loss (δ 1).

    d are the pairwise distances divided by their mean, a the cosines of the angles of all triplets. Zero if the
    student's features are the teacher's up to rotation, translation and scale. Widths may differ. Time and memory of
    the angles grow with G³ (64 samples: 1 MB, 256: 67 MB for each of a few tensors).

    Args:
        student_BD: student features.
        teacher_BE: teacher features; no gradient flows into them.
        distance: factor of the distances.
        angle: factor of the angles; 0: they are not computed.

    Returns:
        A scalar with a graph.
    """
    student_GG, teacher_GG = (lengths(gather_batch(rows.float())) for rows in (student_BD, teacher_BE.detach()))
    total = distance * F.smooth_l1_loss(distances(student_GG), distances(teacher_GG))
    if angle:
        total = total + angle * F.smooth_l1_loss(angles(student_GG), angles(teacher_GG))
    return total


class RKD(Objective):
    """Relational knowledge distillation on pooled features. See :func:`rkd`.

    Paper: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068; factors 25 and 50.

    Deviations: relations are computed over the batch of all ranks, so that the loss does not depend on their number;
    angles are computed from the distances, not from the vectors between samples.

    Example:
        >>> import torch, distill
        >>> rkd = distill.create_objective("rkd")
        >>> student, teacher = distill.Features(pooled=torch.eye(3)), distill.Features(pooled=2 * torch.eye(3) + 1)
        >>> rkd(student, teacher, distill.Targets(labels=torch.tensor([0, 1, 0]))).item()  # no effect of scale, origin
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["rkd"] = "rkd"
        distance: float = Field(25.0, ge=0, description="factor of the distances")
        angle: float = Field(
            50.0, ge=0, description="factor of the angles, whose cost grows with the batch size cubed; 0: not computed"
        )

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Park et al., CVPR 2019, arXiv 1904.05068"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return rkd(*matched_fields(student, teacher, "pooled"), self.settings.distance, self.settings.angle)
