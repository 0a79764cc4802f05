"""Similarity-preserving distillation: samples that are alike for the teacher are alike for the student.

Shape suffixes: B batch of this rank, G batch of all ranks, C channels, H W map size.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Batch, Objective
from distill.objectives.ranks import gather_batch
from distill.objectives.stages import StageSettings, map_pairs, match_stages


def sp(student_BX: Tensor, teacher_BY: Tensor) -> Tensor:
    """``‖n(S Sᵀ) − n(T Tᵀ)‖² / G²`` over the batch of all ranks, n the division of each row by its length.

    Rows S [G, X] and T [G, Y] are flattened activations of any widths. Zero where they are equal, and for one sample.
    """
    ours, theirs = (gather_batch(rows.float().flatten(1)) for rows in (student_BX, teacher_BY))
    return F.mse_loss(F.normalize(ours @ ours.T), F.normalize(theirs @ theirs.T))


class SP(Objective):
    """Similarity preservation on maps, the sum over the matched stages. See :func:`sp`.

    Paper: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682; weight 3000.

    Deviation: similarities are over the batch of all ranks, so that two ranks train as one does.
    """

    class Settings(StageSettings):
        type: Literal["sp"] = "sp"
        weight: float = Field(3000.0, ge=0, description="factor of this term in the sum")
        stages: Literal["all", "middle", "last"] | dict[str, str] = Field(
            "last", description="'last' of the student's stages and of the teacher's; 'all'; 'middle'; or names"
        )

    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    paper: ClassVar[str] = "Tung and Mori, ICCV 2019, arXiv 1907.09682"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.pairs = match_stages(settings.stages, student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        return sum(sp(*maps) for maps in map_pairs(student, teacher, self.pairs))  # type: ignore[return-value]
