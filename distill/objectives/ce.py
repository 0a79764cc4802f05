"""Cross-entropy with the labels; needs no teacher.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMap
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
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, mean over the labeled samples of all ranks; zero, with a graph, if no sample is labeled.

    ``L = −(1/N) Σ_i Σ_k q_ik log softmax(z_i)_k`` over the N samples with a label y, where
    ``q_ik = (1 − ε)·[k = y_i] + ε/K``. For mixed images, ``[k = y_i]`` is replaced by
    ``λ[k = y_i] + (1 − λ)[k = y'_i]``, and a sample counts as labeled only if both of its labels are known.

    A class weight w multiplies the loss for a label: ``w_y`` the sample's loss, for mixed images ``w_y`` and ``w_y'``
    its two parts. The sum is divided by N as without weights. torch divides by the sum of the weights in the batch
    instead, so that the gradient of a sample depends on the batch that it is in.

    Args:
        logits_BK: student logits.
        labels_B: class indices, ``UNLABELED`` for samples without a label.
        label_smoothing: ε in [0, 1).
        mixed_labels_B: y', class indices of the images that were mixed in; None: images are not mixed.
        mix_lambda: λ, the fraction of the sample's own image.
        weights_B: factors of the samples' losses.
        class_weights_K: factors of the losses for the labels; None: all 1.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the labels do not match the batch.
    """
    if labels_B.shape != logits_BK.shape[:1]:
        raise ValueError(f"labels of shape {shape(labels_B)} do not match logits of shape {shape(logits_BK)}")

    def of(targets_B: Tensor) -> Tensor:
        loss_B = F.cross_entropy(
            logits_BK.float(), targets_B, ignore_index=UNLABELED, label_smoothing=label_smoothing, reduction="none"
        )
        return loss_B if class_weights_K is None else loss_B * class_weights_K[targets_B.clamp(min=0)]

    if mixed_labels_B is None:
        return mean_where(of(labels_B), labels_B != UNLABELED, weights_B)
    known_B = (labels_B != UNLABELED) & (mixed_labels_B != UNLABELED)
    return mean_where(of(labels_B).lerp(of(mixed_labels_B), 1 - mix_lambda), known_B, weights_B)


def balanced_weights(labels_N: Tensor, classes: int) -> Tensor:
    """Class weights ``w_k = N / (C n_k)`` for N labeled samples, n_k of class k, C classes that have any.

    Every class then has the same total weight, and the mean weight of a sample is 1 (scikit-learn's ``balanced``).

    Args:
        labels_N: class indices, ``UNLABELED`` for samples without a label, which do not count.
        classes: K.

    Returns:
        [K] float32; 1 for a class without a sample.
    """
    counts_K = labels_N[labels_N != UNLABELED].bincount(minlength=classes).float()
    weights_K = counts_K.sum() / (counts_K.count_nonzero().clamp(min=1) * counts_K.clamp(min=1))
    return weights_K.where(counts_K > 0, 1.0)


class CrossEntropy(Objective):
    """Cross-entropy with the labels; unlabeled samples are left out. See :func:`cross_entropy`.

    ``class_weights: balanced`` is for a skewed training set: each class has the same total weight, see
    :func:`balanced_weights`. It changes this term alone, costs nothing and draws each image once in an epoch, but a
    sample of a class of very few images has a large weight and makes the gradient noisy. ``data.sampler: balanced``
    draws each class equally often instead, which balances every objective, also the teacher's outputs, and suits
    ratios of more than about 10 to 1. Use one of the two.

    Raises:
        ValueError: the number of class weights is not the student's number of classes.

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
        class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
            None,
            description="factors of the loss for each class; balanced: inverse to its number of labels in training,"
            " with mean 1 over them",
        )
        among: Literal["all", "present"] = Field(
            "all",
            description="classes of the softmax: all, or those that a training sample has. In a stream without a "
            "memory, present are the classes of the task, as in LwF: their loss does not push the others down",
        )

    reads_teacher: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    weighs_samples: ClassVar[bool] = True

    settings: Settings
    class_weights_K: Tensor | None
    present: LabelMap | None

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.classes = student.classes
        given = settings.class_weights
        if isinstance(given, tuple) and len(given) != student.classes:
            raise ValueError(f"ce.class_weights has {len(given)} numbers for {student.classes} classes")
        weights_K = torch.tensor(given) if isinstance(given, tuple) else None
        self.register_buffer("class_weights_K", weights_K, persistent=False)
        self.register_module("present", None)

    def remember(self, labels: Tensor) -> None:
        """Set balanced class weights, and the classes of the softmax, for the labels [N] of the training split."""
        labeled = labels[labels != UNLABELED]
        if self.settings.among == "present" and len(labeled):
            self.present = LabelMap({k: [k] for k in labeled.unique().tolist()}, self.classes, self.classes)
        if self.settings.class_weights == "balanced":
            self.class_weights_K = balanced_weights(labels, self.classes)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        if self.settings.class_weights == "balanced" and self.class_weights_K is None:
            raise ValueError("ce.class_weights: balanced needs the labels of the training split, see remember()")
        logits_BK, batch_labels = field_of("student", student, "logits"), [batch.labels, batch.mixed_labels]
        class_weights_K = self.class_weights_K
        if (present := self.present) is not None:
            logits_BK = present.of_student(logits_BK)
            batch_labels = [None if labels is None else present.labels(labels) for labels in batch_labels]
            class_weights_K = None if class_weights_K is None else class_weights_K[present.known_S]
        elif self.settings.among == "present" and (batch.labels != UNLABELED).any():
            raise ValueError("ce.among: present needs the labels of the training split, see remember()")
        labels_B, mixed_labels_B = batch_labels
        assert labels_B is not None
        return cross_entropy(
            logits_BK,
            labels_B,
            self.settings.label_smoothing,
            mixed_labels_B,
            batch.mix_lambda,
            batch.weights,
            class_weights_K,
        )
