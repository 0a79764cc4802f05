"""Knowledge distillation: the student matches the teacher's softened class probabilities.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, same_classes, same_shape
from distill.objectives.logits import LogitSettings, divergence
from distill.objectives.logits import standardize as standardized


def kd(
    student_BK: Tensor,
    teacher_BK: Tensor,
    temperature: float = 4.0,
    standardize: bool = False,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Knowledge distillation.

    ``L = T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))``, mean over the batch. The factor T² makes the
    magnitude of the gradient nearly independent of T. Zero if the two distributions are equal; labels are not used.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. Common
    weights: 0.1 for the cross-entropy with the labels and 0.9 for this term.

    Args:
        student_BK: student logits.
        teacher_BK: teacher logits; no gradient flows into them.
        temperature: T.
        standardize: standardize each row first, see :func:`distill.objectives.logits.standardize`.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("logits", student_BK, teacher_BK)
    student_BK, teacher_BK = student_BK.float(), teacher_BK.detach().float()
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    return divergence(student_BK, teacher_BK, temperature, weights_B)


class KD(Objective):
    """Knowledge distillation on logits. See :func:`kd`.

    Example:
        >>> import torch, distill
        >>> kd = distill.create_objective("kd", temperature=1)
        >>> student, teacher = (distill.Features(logits=torch.tensor([p]).log()) for p in ([0.5, 0.5], [0.75, 0.25]))
        >>> round(kd(student, teacher, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # ¾ log 3/2 − ¼ log 2
        0.1308
    """

    class Settings(LogitSettings):
        type: Literal["kd"] = "kd"

    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        same_classes(student, teacher)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        return kd(student_BK, teacher_BK, self.settings.temperature, self.settings.standardize, batch.weights)
