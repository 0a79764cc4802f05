"""Cross-entropy with the labels; needs no teacher.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import field_of, shape
from distill.objectives.ranks import mean_where


def cross_entropy(
    logits_BK: Tensor,
    labels_B: Tensor,
    label_smoothing: float = 0.0,
    mixed_labels_B: Tensor | None = None,
    mix_lambda: float = 1.0,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, mean over the labeled samples of all ranks; zero, with a graph, if no sample is labeled.

    ``L = −(1/N) Σ_i Σ_k q_ik log softmax(z_i)_k`` over the N samples with a label y, where
    ``q_ik = (1 − ε)·[k = y_i] + ε/K``. For mixed images, ``[k = y_i]`` is replaced by
    ``λ[k = y_i] + (1 − λ)[k = y'_i]``, and a sample counts as labeled only if both of its labels are known.

    Args:
        logits_BK: student logits.
        labels_B: class indices, ``UNLABELED`` for samples without a label.
        label_smoothing: ε in [0, 1).
        mixed_labels_B: y', class indices of the images that were mixed in; None: images are not mixed.
        mix_lambda: λ, the fraction of the sample's own image.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the labels do not match the batch.
    """
    if labels_B.shape != logits_BK.shape[:1]:
        raise ValueError(f"labels of shape {shape(labels_B)} do not match logits of shape {shape(logits_BK)}")

    def of(targets_B: Tensor) -> Tensor:
        return F.cross_entropy(
            logits_BK.float(), targets_B, ignore_index=UNLABELED, label_smoothing=label_smoothing, reduction="none"
        )

    if mixed_labels_B is None:
        return mean_where(of(labels_B), labels_B != UNLABELED, weights_B)
    known_B = (labels_B != UNLABELED) & (mixed_labels_B != UNLABELED)
    return mean_where(of(labels_B).lerp(of(mixed_labels_B), 1 - mix_lambda), known_B, weights_B)


class CrossEntropy(Objective):
    """Cross-entropy with the labels; unlabeled samples are left out. See :func:`cross_entropy`.

    Example:
        >>> import torch, distill
        >>> ce = distill.create_objective("ce")
        >>> student = distill.Features(logits=torch.zeros(1, 2))
        >>> round(ce(student, None, distill.Targets(labels=torch.tensor([0]))).item(), 4)  # log 2
        0.6931
    """

    class Settings(Objective.Settings):
        type: Literal["ce"] = "ce"
        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="fraction of the target distributed over all classes"
        )

    reads_teacher: ClassVar[bool] = False
    weighs_samples: ClassVar[bool] = True

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        logits_BK = field_of("student", student, "logits")
        smoothing = self.settings.label_smoothing
        return cross_entropy(logits_BK, batch.labels, smoothing, batch.mixed_labels, batch.mix_lambda, batch.weights)
