"""Distillation through a token: trains a ViT's distillation token with the teacher, its class token with labels.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.ce import cross_entropy
from distill.objectives.compare import field_of, matched_fields, same_classes, same_shape
from distill.objectives.kd import kd


class DeiT(Objective):
    """``L = (1 − α) · CE(z_class, y) + α · D(z_token, z_teacher)`` for students with a distillation token.

    ``hard``: D is the cross-entropy with the teacher's decision ``argmax z_teacher``. ``soft``: D is KD at temperature
    T. It includes the cross-entropy with the labels, so no ``ce`` term is needed. In evaluation the logits of the two
    heads are averaged, as in timm.

    Paper: Touvron et al., Training data-efficient image transformers, ICML 2021, arXiv 2012.12877: hard, α 0.5; soft
    there with α 0.1 and T 3.

    Students: timm's ``deit_*_distilled_*`` and other networks with ``head_dist``; for others, building the
    objective is an error.

    Example:
        >>> import torch, distill
        >>> deit = distill.create_objective("deit")
        >>> logits = torch.zeros(1, 2)
        >>> student, teacher = distill.Features(logits=logits, token=logits), distill.Features(logits=logits)
        >>> round(deit(student, teacher, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # ½ log 2 + ½ log 2
        0.6931
    """

    class Settings(Objective.Settings):
        type: Literal["deit"] = "deit"
        kind: Literal["hard", "soft"] = Field(
            "hard", description="hard: cross-entropy with the teacher's top-1 class; soft: KD"
        )
        alpha: float = Field(
            0.5, ge=0, le=1, description="weight of the distillation token's loss, α; the class token's has 1 − α"
        )
        temperature: float = Field(3.0, gt=0, description="soft only: T")
        standardize: bool = Field(False, description="soft only: standardize each row of logits first")
        label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the labels; the paper has 0.1")

    needs: ClassVar[frozenset[str]] = frozenset({"logits", "token"})
    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Touvron et al., ICML 2021, arXiv 2012.12877"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        token_BK = field_of("student", student, "token")
        same_shape("logits", token_BK, teacher_BK)
        class_BK = 2 * student_BK - token_BK  # logits are the mean of the two heads
        s = self.settings
        weights_B = batch.weights
        label_loss = cross_entropy(
            class_BK, batch.labels, s.label_smoothing, batch.mixed_labels, batch.mix_lambda, weights_B
        )
        if s.kind == "soft":
            token_loss = kd(token_BK, teacher_BK, s.temperature, s.standardize, weights_B)
            return (1 - s.alpha) * label_loss + s.alpha * token_loss
        # argmax would turn a NaN into a class; adding 0 · sum keeps it a NaN.
        token_loss = cross_entropy(token_BK, teacher_BK.argmax(dim=1), weights_B=weights_B) + 0 * teacher_BK.sum()
        return (1 - s.alpha) * label_loss + s.alpha * token_loss
