"""Knowledge review: fuses the student's stages from deep to shallow and compares each with the teacher's stage.

Shape suffixes: B batch, C channels, H W map size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import FeatureShapes
from distill.objectives.ranks import RankBatchNorm
from distill.objectives.stages import MapObjective, mean_square, on_one_grid

_POOLS = (4, 2, 1)


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of one stage with the fused deeper ones.

    ``x = BN(conv1×1(F_s))``; with a deeper ``y`` (resized to x): ``x ← a₁ x + a₂ y``, ``a = sigmoid(conv1×1([x, y]))``.
    Returns the fused x for the next shallower stage, and ``BN(conv3×3(x))`` with the teacher's channels.

    Args:
        student_width: channels of the student's map.
        middle: channels of x and y.
        teacher_width: channels of the teacher's map.
        has_deeper: whether there is a deeper stage, False for the last one.
    """

    def __init__(self, student_width: int, middle: int, teacher_width: int, has_deeper: bool):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(student_width, middle, 1, bias=False), RankBatchNorm(middle))
        self.expand = nn.Sequential(
            nn.Conv2d(middle, teacher_width, 3, padding=1, bias=False), RankBatchNorm(teacher_width)
        )
        self.attend = nn.Conv2d(2 * middle, 2, 1) if has_deeper else None

    def forward(self, map_BCHW: Tensor, deeper_BCHW: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.reduce(map_BCHW)
        if self.attend is not None:
            assert deeper_BCHW is not None
            y = F.interpolate(deeper_BCHW, x.shape[2:], mode="nearest")
            weights = self.attend(torch.cat([x, y], dim=1)).sigmoid()
            x = x * weights[:, :1] + y * weights[:, 1:]
        return x, self.expand(x)


def hcl(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """[B]: hierarchical context loss, the mean squared error of maps and of their averages on 4×4, 2×2 and 1×1 cells.

    The weights are 1, ½, ¼, ⅛, divided by their sum; grids not smaller than the map are left out. Zero if the maps are
    equal.
    """
    error_BCHW = student_BCHW - teacher_BCHW
    total, weights, weight = mean_square(error_BCHW), 1.0, 1.0
    for cells in _POOLS:
        if cells >= min(student_BCHW.shape[2:]):
            continue
        weight /= 2
        pooled = F.adaptive_avg_pool2d(error_BCHW, cells)  # the mean of the differences is the difference of the means
        total, weights = total + weight * mean_square(pooled), weights + weight
    return total / weights


class ReviewKD(MapObjective):
    """Knowledge review: the sum over stages of :func:`hcl` between the fused student map and the teacher's map.

    Paper: Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044; weight 5, with a
    cross-entropy and a linear warm-up over 20 of 240 epochs (``schedule: {warmup: 20}``).

    Deviations: batch norms use the batch of all ranks; fused maps and the teacher's are average-pooled to the smaller
    of the two grids; the paper's extra stage of pooled features is a separate objective here (``pooled``).

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> maps = {"early": (8, 14, 14), "late": (16, 7, 7)}
        >>> shapes = FeatureShapes(classes=2, pooled=16, maps=maps)
        >>> reviewkd = distill.create_objective("reviewkd", student=shapes, teacher=shapes)
        >>> features = distill.Features(maps={name: torch.zeros(1, *size) for name, size in maps.items()})
        >>> reviewkd(features, features, distill.Targets(labels=torch.tensor([0]))).item()
        0.0
    """

    class Settings(MapObjective.Settings):
        type: Literal["reviewkd"] = "reviewkd"
        weight: float = Field(5.0, ge=0, description="factor of this term in the sum")
        width: int = Field(64, gt=0, description="channels of the fused maps; 512 is usual on ImageNet")

    paper: ClassVar[str] = "Chen et al., CVPR 2021, arXiv 2104.09044"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        last = len(self.pairs) - 1
        self.fusions = nn.ModuleList(
            Fusion(student_width, settings.width, teacher_width, has_deeper=index < last)
            for index, (student_width, teacher_width) in enumerate(self.widths)
        )

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        deeper: Tensor | None = None
        stages = []
        for fusion, (student_map, teacher_map) in reversed(list(zip(self.fusions, maps))):
            deeper, fused = fusion(student_map, deeper)
            stages.append(hcl(*on_one_grid(fused, teacher_map)))
        return sum(stages)  # type: ignore[return-value]
