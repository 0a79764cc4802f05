"""FitNets: squared error between the student's map of a middle stage, after a regressor, and the teacher's.

Shape suffixes: B batch, C channels, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import FeatureShapes
from distill.objectives.stages import MapObjective, Stages, mean_square, on_one_grid, stages_field


class FitNets(MapObjective):
    """Hints: ``L = mean((r(F_s) − F_t)²)`` over batch, channels and pixels, mean over the matched stages.

    r is a 1×1 convolution with bias from the student's channels to the teacher's, one per pair of stages, trained and
    never exported. Maps of different sizes are average-pooled to the smaller grid. Zero if ``r(F_s) = F_t``.

    Paper: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550; weight 100 is
    usual in comparisons on CIFAR-100.

    Deviations: trained together with the other terms from the beginning, as in these comparisons; the paper first
    trains on hints alone (use ``schedule: {until: …}`` and a later ``start`` for the other terms). The regressor is
    1×1; in the paper its window compensates for a difference in size.

    Example:
        >>> import distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = (FeatureShapes(2, width, {"last": (width, 7, 7)}) for width in (8, 16))
        >>> distill.create_objective("fitnets", stages="last", student=student, teacher=teacher).regressors[0]
        Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
    """

    class Settings(MapObjective.Settings):
        type: Literal["fitnets"] = "fitnets"
        weight: float = Field(100.0, ge=0, description="factor of this term in the sum")
        stages: Stages = stages_field("middle")

    paper: ClassVar[str] = "Romero et al., ICLR 2015, arXiv 1412.6550"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.regressors = nn.ModuleList(
            nn.Conv2d(student_width, teacher_width, 1) for student_width, teacher_width in self.widths
        )

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        stages = []
        for regressor, (student_map, teacher_map) in zip(self.regressors, maps):
            student_map, teacher_map = on_one_grid(regressor(student_map), teacher_map)
            stages.append(mean_square(student_map - teacher_map))
        return torch.stack(stages).mean(0)
