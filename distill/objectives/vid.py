"""Variational information distillation: the likelihood of the teacher's maps under a Gaussian predicted by the student.

Shape suffixes: B batch, C channels, H W map size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.features import FeatureShapes
from distill.objectives.stages import MapObjective, mean_square, on_one_grid

_LEAST_VARIANCE = 1e-5
_FIRST_VARIANCE = 5.0


def vid(mean_BCHW: Tensor, teacher_BCHW: Tensor, variance_C: Tensor) -> Tensor:
    """[B]: ``½ · mean((μ − F_t)² / σ² + log σ²)`` over channels and pixels, with one σ² per channel.

    The negative log-likelihood without its constant term. For given errors e² its minimum is ``½ (1 + log mean e²)``,
    at ``σ² = mean e²``, which may be negative.

    Args:
        mean_BCHW: μ, on the teacher's grid.
        teacher_BCHW: F_t.
        variance_C: σ², greater than 0.

    Returns:
        [B].
    """
    errors_BC = mean_square(mean_BCHW - teacher_BCHW, (2, 3))
    return 0.5 * (errors_BC / variance_C + variance_C.log()).mean(1)


class VID(MapObjective):
    """Variational information distillation, the mean of :func:`vid` over the matched stages and the batch.

    ``μ`` is a small network on the student's map: 1×1 conv, ReLU, 1×1 conv, ReLU, 1×1 conv, all with the teacher's
    number of channels. ``σ² = softplus(α) + 1e-5`` is initialized to 5.

    Paper: Ahn et al., Variational Information Distillation for Knowledge Transfer, CVPR 2019, arXiv 1904.05835.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = (FeatureShapes(2, width, {"last": (width, 7, 7)}) for width in (8, 16))
        >>> vid = distill.create_objective("vid", student=student, teacher=teacher)
        >>> student, teacher = (distill.Features(maps={"last": torch.zeros(1, width, 7, 7)}) for width in (8, 16))
        >>> round(vid(student, teacher, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # no error: ½ log 5
        0.8047
    """

    class Settings(MapObjective.Settings):
        type: Literal["vid"] = "vid"

    paper: ClassVar[str] = "Ahn et al., CVPR 2019, arXiv 1904.05835"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.means = nn.ModuleList(_mean(student_width, teacher_width) for student_width, teacher_width in self.widths)
        start = math.log(math.expm1(_FIRST_VARIANCE - _LEAST_VARIANCE))
        self.alpha = nn.ParameterList(torch.full((teacher_width,), start) for _, teacher_width in self.widths)

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        stages = []
        for mean, alpha, (student_map, teacher_map) in zip(self.means, self.alpha, maps):
            stages.append(vid(*on_one_grid(mean(student_map), teacher_map), F.softplus(alpha) + _LEAST_VARIANCE))
        return torch.stack(stages).mean(0)


def _mean(student_width: int, teacher_width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(student_width, teacher_width, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_width, teacher_width, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_width, teacher_width, 1, bias=False),
    )
