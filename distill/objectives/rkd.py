"""Relational knowledge distillation: distances and angles between samples are those of the teacher.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Batch, Objective
from distill.objectives.compare import two
from distill.objectives.ranks import gather_batch


def distances(rows_GD: Tensor) -> Tensor:
    """[G, G] Euclidean distances divided by the mean of those that are not 0; the gradient at 0 is 0."""
    # Not by way of a matrix product: its rounding would leave samples a distance from themselves.
    distance = torch.cdist(rows_GD, rows_GD, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / (distance.sum() / (distance > 0).sum().clamp(min=1)).clamp(min=1e-12)


def angles(rows_GD: Tensor) -> Tensor:
    """[G, G, G] cosines: ``[i, j, k]`` of the angle at sample i between j and k; 0 where one of them is i."""
    edges = F.normalize(rows_GD[None] - rows_GD[:, None], dim=2)
    return edges @ edges.transpose(1, 2)


def rkd(student_BD: Tensor, teacher_BE: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """``distance · h(d_s, d_t) + angle · h(a_s, a_t)`` over the batch of all ranks, h the mean of the smooth L1 (δ 1).

    d are the pairwise distances over their mean, a the cosines of all triplets. Zero where the student's features are
    the teacher's, turned, moved or scaled. Widths may differ. Time and memory of the angles grow with G³ (64 samples:
    1 MB, 256: 67 MB).
    """
    student_GD, teacher_GE = gather_batch(student_BD.float()), gather_batch(teacher_BE.detach().float())
    total = distance * F.smooth_l1_loss(distances(student_GD), distances(teacher_GE))
    if angle:
        total = total + angle * F.smooth_l1_loss(angles(student_GD), angles(teacher_GE))
    return total


class RKD(Objective):
    """Relational knowledge distillation on pooled features. See :func:`rkd`.

    Paper: Park et al., Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068; factors 25 and 50.

    Deviation: relations are over the batch of all ranks, so that two ranks train as one does.
    """

    class Settings(Objective.Settings):
        type: Literal["rkd"] = "rkd"
        distance: float = Field(25.0, ge=0, description="factor of the distances")
        angle: float = Field(
            50.0, ge=0, description="factor of the angles; 0 leaves out what grows with the batch cubed"
        )

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Park et al., CVPR 2019, arXiv 1904.05068"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        return rkd(*two(student, teacher, "pooled"), self.settings.distance, self.settings.angle)
