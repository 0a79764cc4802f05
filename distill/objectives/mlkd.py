"""Multi-level logit distillation: of samples, of pairs of classes and of pairs of samples, at several temperatures.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, same_classes, same_shape
from distill.objectives.logits import divergence
from distill.objectives.logits import standardize as standardized
from distill.objectives.ranks import gather_batch


def mlkd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    standardize: bool = False,
) -> Tensor:
    """Alignment at the levels of instance, class and batch, mean over the temperatures.

    With ``p = softmax(z / T)`` [B, K] over the batch of all ranks, at each T::

        L_T = T² KL(p_t ‖ p_s) + ‖p_sᵀ p_s − p_tᵀ p_t‖² / K + ‖p_s p_sᵀ − p_t p_tᵀ‖² / B

    (squared Frobenius norms). Zero if student equals teacher.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits; no gradient flows into them.
        temperatures: values of T.
        standardize: standardize each row of logits first.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("logits", student_BK, teacher_BK)
    student_BK, teacher_BK = student_BK.float(), teacher_BK.detach().float()
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    all_student_BK, all_teacher_BK = gather_batch(student_BK), gather_batch(teacher_BK)
    terms = []
    for temperature in temperatures:
        p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (all_student_BK, all_teacher_BK))
        classes = (p_s.T @ p_s - p_t.T @ p_t).square().sum() / p_s.shape[1]
        samples = (p_s @ p_s.T - p_t @ p_t.T).square().sum() / p_s.shape[0]
        terms.append(divergence(student_BK, teacher_BK, temperature) + classes + samples)
    return sum(terms) / len(terms)  # type: ignore[return-value]


class MLKD(Objective):
    """Multi-level logit distillation. See :func:`mlkd`.

    Paper: Jin, Wang and Lin, Multi-Level Logit Distillation, CVPR 2023.

    Deviations: one view of each image; the paper also aligns a weakly with a strongly augmented one (here
    ``augment.policy`` chooses the views); no masks by the teacher's confidence.

    Example:
        >>> import torch, distill
        >>> mlkd = distill.create_objective("mlkd")
        >>> features = distill.Features(logits=torch.tensor([[2.0, 0.0, -1.0]]))
        >>> mlkd(features, features, distill.Targets(labels=torch.tensor([0]))).item()
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["mlkd"] = "mlkd"
        temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(
            (2.0, 3.0, 4.0, 5.0, 6.0), min_length=1, description="values of T, over which the loss is averaged"
        )
        standardize: bool = Field(False, description="standardize each row of logits first")

    paper: ClassVar[str] = "Jin et al., CVPR 2023"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        return mlkd(student_BK, teacher_BK, self.settings.temperatures, self.settings.standardize)
