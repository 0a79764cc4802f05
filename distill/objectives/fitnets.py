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
    never exported; with ``projector: none`` it is the identity, for equal widths. Maps of different sizes are
    average-pooled to the smaller grid. Zero if ``r(F_s) = F_t``.

    With ``normalize: rms``, L is divided by ``mean(F_t²)`` over batch, channels and pixels: the loss with which
    offsite-tuning distills an emulator (Xiao et al., arXiv 2302.04870).

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
        projector: Literal["conv", "none"] = Field(
            "conv", description="r: a 1×1 conv, or the identity (none), for stages of equal widths"
        )
        normalize: Literal["none", "rms"] = Field(
            "none", description="rms: divide by the mean square of the teacher's map over the batch"
        )

    paper: ClassVar[str] = "Romero et al., ICLR 2015, arXiv 1412.6550"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.regressors = nn.ModuleList(
            nn.Conv2d(student_width, teacher_width, 1) if settings.projector == "conv" else nn.Identity()
            for student_width, teacher_width in self.widths
        )
        unequal = [pair for pair, widths in zip(self.pairs, self.widths) if widths[0] != widths[1]]
        if unequal and settings.projector == "none":
            (stage_s, stage_t), (width_s, width_t) = unequal[0], self.widths[self.pairs.index(unequal[0])]
            raise ValueError(
                f"fitnets: projector: none needs equal widths, but {stage_s} of the student has {width_s} channels and "
                f"{stage_t} of the teacher {width_t}; use projector: conv"
            )

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        stages = []
        for regressor, (student_map, teacher_map) in zip(self.regressors, maps):
            student_map, teacher_map = on_one_grid(regressor(student_map), teacher_map)
            error = mean_square(student_map - teacher_map)
            stages.append(error / teacher_map.square().mean() if self.settings.normalize == "rms" else error)
        return torch.stack(stages).mean(0)
