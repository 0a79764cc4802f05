"""BYOL: predicts the momentum network's projected feature of another view; needs no negatives and no labels.

Shape suffixes: B batch, D pooled width, P projected width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from augment.policy import PairKind
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, same_shape
from distill.objectives.projector import CarrySettings, Following, Projecting, mlp
from distill.objectives.ranks import weighed


def byol(prediction_BP: Tensor, target_BP: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """``L = 2 − 2 cos(q, z̄)``, mean over the batch: the squared distance of unit vectors, in [0, 4].

    Args:
        prediction_BP: q, the student's predictions.
        target_BP: z̄, projected features of the momentum network; no gradient flows into them.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("predictions", prediction_BP, target_BP)
    cosine_B = F.cosine_similarity(prediction_BP.float(), target_BP.detach().float(), dim=1)
    return weighed(2 - 2 * cosine_B, weights_B).mean()


class BYOL(Projecting, Objective):
    """BYOL on pooled features of the student and of the momentum network, for different views. See :func:`byol`.

    Projector and predictor are ``Linear(hidden) – BN – ReLU – Linear(dim)``. The momentum network's projector is an
    exponential moving average of the student's, with the network's decay.

    Paper: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, arXiv 2006.07733: hidden 4096, dim 256, decay from
    0.996 (0.99 for short trainings and small data) to 1. With ``augment.policy: both_to_both`` the weight 2 makes the
    mean over both directions the paper's sum.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> byol = distill.create_objective("byol", student=FeatureShapes(2, pooled=8), hidden=4, dim=3)
        >>> student, momentum = (distill.Features(pooled=torch.randn(4, 8)) for _ in range(2))
        >>> 0 <= byol(student, momentum, distill.Targets(labels=torch.zeros(4, dtype=torch.int64))).item() <= 4
        True
    """

    class Settings(CarrySettings):
        type: Literal["byol"] = "byol"
        weight: float = Field(2.0, ge=0, description="factor of this term in the sum")
        hidden: int = Field(4096, gt=0, description="width of the hidden layers of projector and predictor")
        dim: int = Field(256, gt=0, description="width of the projected features")

    reads_momentum: ClassVar[bool] = True
    view_pairs: ClassVar[PairKind] = "cross"
    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Grill et al., NeurIPS 2020, arXiv 2006.07733"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.projector = mlp([student.pooled, settings.hidden, settings.dim], bias=False)
        self.predictor = mlp([settings.dim, settings.hidden, settings.dim])
        self.target_projector = Following(self.projector)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        target_BP = self.target_projector(self.projector, teacher_BD)
        return byol(self.predictor(self.projector(student_BD)), target_BP, batch.weights)

    def follow(self, decay: float) -> None:
        self.target_projector.follow(self.projector, decay)
