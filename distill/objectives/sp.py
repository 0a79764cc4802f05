"""Similarity-preserving distillation: the similarities between the samples of a batch match the teacher's.

Shape suffixes: B batch of this rank, G batch of all ranks, C channels, H W map size.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Targets
from distill.objectives.ranks import gather_batch
from distill.objectives.stages import MapObjective, Stages, stages_field


def sp(student_BX: Tensor, teacher_BY: Tensor) -> Tensor:
    """``‖n(S Sᵀ) − n(T Tᵀ)‖² / G²`` over the batch of all ranks, with n the normalization of each row to length 1.

    Rows S [G, X] and T [G, Y] are flattened activations of any widths. Zero if they are equal, or for one sample.
    """
    student_GX, teacher_GY = (gather_batch(rows.float().flatten(1)) for rows in (student_BX, teacher_BY.detach()))
    return F.mse_loss(F.normalize(student_GX @ student_GX.T), F.normalize(teacher_GY @ teacher_GY.T))


class SP(MapObjective):
    """Similarity preservation on maps, the sum over the matched stages. See :func:`sp`.

    Paper: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682; weight 3000.

    Deviation: similarities are computed over the batch of all ranks, so that the loss does not depend on their number.

    Example:
        >>> import torch, distill
        >>> sp = distill.create_objective("sp")
        >>> map_ = torch.arange(8.0).reshape(2, 1, 2, 2)
        >>> student, teacher = distill.Features(maps={"last": -map_}), distill.Features(maps={"last": 2 * map_})
        >>> sp(student, teacher, distill.Targets(labels=torch.tensor([0, 1]))).item()
        0.0
    """

    class Settings(MapObjective.Settings):
        type: Literal["sp"] = "sp"
        weight: float = Field(3000.0, ge=0, description="factor of this term in the sum")
        stages: Stages = stages_field("last")

    weighs_samples: ClassVar[bool] = False
    paper: ClassVar[str] = "Tung and Mori, ICCV 2019, arXiv 1907.09682"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return sum(sp(*maps) for maps in self.maps(student, teacher))  # type: ignore[return-value]
