"""Dense feature distillation: a distance between the two networks' maps at every position. Needs no labels.

Shape suffixes: B batch, C channels, H W map size, N positions of the batch, D = C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import FeatureShapes
from distill.objectives.pooled import Distance, apart
from distill.objectives.stages import MapObjective, Stages, stages_field


def dense(student_BCHW: Tensor, teacher_BCHW: Tensor, distance: Distance = "cosine") -> Tensor:
    """[B]: the distance of :func:`distill.objectives.pooled.pooled` of the vectors at a position, mean over positions.

    The student's map is resized to the teacher's grid (bilinear, antialiased where it shrinks), since the teacher's map
    is the target. Zero if the resized map equals it.

    Args:
        student_BCHW: student map, with the teacher's channels.
        teacher_BCHW: teacher map; no gradient flows into it.
        distance: ``cosine``, ``mse`` or ``whitened_mse``.

    Returns:
        [B].
    """
    if student_BCHW.shape[2:] != teacher_BCHW.shape[2:]:
        student_BCHW = F.interpolate(student_BCHW, teacher_BCHW.shape[2:], mode="bilinear", antialias=True)
    student_ND, teacher_ND = (map_.movedim(1, -1).flatten(0, 2) for map_ in (student_BCHW, teacher_BCHW))
    return apart(student_ND, teacher_ND, distance).unflatten(0, (len(teacher_BCHW), -1)).mean(1)


class DenseFeature(MapObjective):
    """Dense feature distillation without labels, for example from a foundation model's patch tokens. See :func:`dense`.

    A trained 1×1 convolution per pair of stages maps the student's channels to the teacher's.

    Papers: spatial features with cosine as in AM-RADIO (Ranzinger et al., CVPR 2024, arXiv 2312.06709); the whitened
    target as in feature distillation (Wei et al., 2022, arXiv 2205.14141).

    Deviation: AM-RADIO adds smooth L1 to the cosine and has a two-layer projector.

    Example:
        >>> import distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = (FeatureShapes(2, width, {"last": (width, 7, 7)}) for width in (8, 16))
        >>> distill.create_objective("dense", student=student, teacher=teacher).projectors[0]
        Conv2d(8, 16, kernel_size=(1, 1), stride=(1, 1))
    """

    class Settings(MapObjective.Settings):
        type: Literal["dense"] = "dense"
        distance: Distance = Field("cosine", description="distance of the vectors at a position")
        stages: Stages = stages_field("last")

    paper: ClassVar[str] = "Ranzinger et al., CVPR 2024, arXiv 2312.06709; Wei et al. 2022, arXiv 2205.14141"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projectors = nn.ModuleList(
            nn.Conv2d(student_width, teacher_width, 1) for student_width, teacher_width in self.widths
        )

    def losses(self, maps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        stages = [
            dense(projector(student_map), teacher_map, self.settings.distance)
            for projector, (student_map, teacher_map) in zip(self.projectors, maps)
        ]
        return torch.stack(stages).mean(0)
