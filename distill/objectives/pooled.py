"""Pooled-feature distillation: a distance between the student's projected feature and the teacher's. Needs no labels.

Shape suffixes: B batch, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher, same_shape
from distill.objectives.ranks import weighed

Distance = Literal["cosine", "mse", "whitened_mse"]


def pooled(
    student_BD: Tensor, teacher_BD: Tensor, distance: Distance = "cosine", weights_B: Tensor | None = None
) -> Tensor:
    """Distance between pooled features of the same width, weighted by sample, mean over the batch.

    - ``cosine``: ``1 − cos(f_s, f_t)``, independent of length;
    - ``mse``: ``‖f_s − f_t‖² / D``;
    - ``whitened_mse``: the same after ``f_t ← (f_t − mean(f_t)) / std(f_t)`` over each sample's D values (LayerNorm
      without affine, eps 1e-5), so that a few large channels do not dominate the loss.

    Each is zero where the student's feature equals its target.

    Args:
        student_BD: student features, of the teacher's width.
        teacher_BD: teacher features; no gradient flows into them.
        distance: which of the three.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    return weighed(apart(student_BD, teacher_BD, distance), weights_B).mean()


def apart(student_BD: Tensor, teacher_BD: Tensor, distance: Distance) -> Tensor:
    """[B]: the distances of :func:`pooled`, row by row.

    Args:
        student_BD: student features.
        teacher_BD: teacher features; no gradient flows into them.
        distance: ``cosine``, ``mse`` or ``whitened_mse``.

    Returns:
        [B].
    """
    same_shape("pooled features", student_BD, teacher_BD)
    student_BD, teacher_BD = student_BD.float(), teacher_BD.detach().float()
    if distance == "cosine":
        return 1 - F.cosine_similarity(student_BD, teacher_BD, dim=1)
    if distance == "whitened_mse":
        teacher_BD = F.layer_norm(teacher_BD, teacher_BD.shape[1:])
    return F.mse_loss(student_BD, teacher_BD, reduction="none").mean(1)


class PooledFeature(Objective):
    """Pooled-feature distillation, from any teacher with pooled features, without labels. See :func:`pooled`.

    Papers: cosine on the summary feature as in AM-RADIO (Ranzinger et al., CVPR 2024, arXiv 2312.06709); the whitened
    target as in feature distillation (Wei et al., 2022, arXiv 2205.14141).

    Deviations: one linear projector, where AM-RADIO has a two-layer one; MSE where Wei et al. take smooth L1.

    Example:
        >>> import torch, distill
        >>> pooled = distill.create_objective("pooled", projector="identity")
        >>> student, teacher = (distill.Features(pooled=torch.tensor([row])) for row in ([1.0, 0.0], [0.0, 1.0]))
        >>> pooled(student, teacher, distill.Targets(labels=torch.tensor([0]))).item()  # 1 − cos 90°
        1.0
    """

    class Settings(Objective.Settings):
        type: Literal["pooled"] = "pooled"
        distance: Distance = Field("cosine", description="distance between the projected feature and the teacher's")
        projector: Literal["linear", "identity"] = Field(
            "linear", description="from the student's width to the teacher's; identity needs equal widths"
        )

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Ranzinger et al., CVPR 2024, arXiv 2312.06709; Wei et al. 2022, arXiv 2205.14141"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        width = require_teacher(teacher).pooled
        if settings.projector == "identity" and student.pooled != width:
            raise ValueError(
                f"projector identity: the student's pooled width {student.pooled} differs from the teacher's {width}; "
                "use projector: linear"
            )
        self.projector = nn.Linear(student.pooled, width) if settings.projector == "linear" else nn.Identity()

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        return pooled(self.projector(student_BD), teacher_BD, self.settings.distance, batch.weights)
