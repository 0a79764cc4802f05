"""PODNet: the old model's maps, pooled over height and over width, and its pooled features are kept.

Shape suffixes: B batch, C channels, H W map size.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.compare import matched_fields, require_teacher, same_shape
from distill.objectives.ranks import weighed
from distill.objectives.stages import MapObjective


def profiles(map_BCHW: Tensor) -> Tensor:
    """[B, C · (H + W)]: the sums of F² over the width and over the height, normalized to length 1 per sample."""
    squared = map_BCHW.square()
    return F.normalize(torch.cat([squared.sum(3).flatten(1), squared.sum(2).flatten(1)], dim=1))


def pod_spatial(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """[B]: ``‖a(F_s) − a(F_t)‖`` with the :func:`profiles` a of two maps of the same shape; zero if they are equal."""
    return torch.linalg.vector_norm(profiles(student_BCHW) - profiles(teacher_BCHW), dim=1)


class PODNet(MapObjective):
    """PODNet's distillation: ``spatial · mean over stages of`` :func:`pod_spatial` ``+ flat · (1 − cos(f_s, f_t))``.

    The teacher is the same network before this task, so that maps and features have the same shapes.

    Paper: Douillard et al., PODNet: Pooled Outputs Distillation for Small-Tasks Incremental Learning, ECCV 2020, arXiv
    2004.13513: spatial 3 and flat 1 for CIFAR-100, 8 and 10 for ImageNet.

    Deviations: the paper scales the term by √(classes seen / new classes) in each task, and here ``weight`` is the same
    in all; the maps are those that timm reports for its stages, after the activation, where the authors take them
    before it; as in their code, the norm is not squared, which the paper's equation has.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> shapes = FeatureShapes(2, pooled=8, maps={"last": (4, 2, 2)})
        >>> podnet = distill.create_objective("podnet", student=shapes, teacher=shapes)
        >>> student = distill.Features(pooled=torch.ones(1, 8), maps={"last": torch.ones(1, 4, 2, 2)})
        >>> teacher = distill.Features(pooled=2 * torch.ones(1, 8), maps={"last": -3 * torch.ones(1, 4, 2, 2)})
        >>> round(podnet(student, teacher, distill.Targets(labels=torch.tensor([0]))).item(), 6)  # scale does not count
        0.0
    """

    class Settings(MapObjective.Settings):
        type: Literal["podnet"] = "podnet"
        spatial: float = Field(3.0, ge=0, description="factor of the distance of the pooled maps")
        flat: float = Field(1.0, ge=0, description="factor of the cosine distance of the pooled features")

    needs: ClassVar[frozenset[str]] = frozenset({"maps", "pooled"})
    paper: ClassVar[str] = "Douillard et al., ECCV 2020, arXiv 2004.13513"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        old = require_teacher(teacher)
        sizes = [(student.maps[stage_s], old.maps[stage_t]) for stage_s, stage_t in self.pairs]
        for own, other in [((student.pooled,), (old.pooled,)), *sizes]:
            if own != other:
                raise ValueError(f"podnet compares a network with itself before: {own} is not {other}")

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        same_shape("pooled features", student_BD, teacher_BD)
        maps = self.maps(student, teacher)
        for pair in maps:
            same_shape("maps", *pair)
        spatial_B = sum(pod_spatial(*pair) for pair in maps) / len(maps)
        flat_B = 1 - F.cosine_similarity(student_BD, teacher_BD, dim=1)
        return weighed(self.settings.spatial * spatial_B + self.settings.flat * flat_B, batch.weights).mean()
