"""Invariant contrastive distillation: contrasts each student feature with the teacher features of the batch.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher, same_shape
from distill.objectives.ranks import gather_batch, rank, weighed


def icd(
    student_BP: Tensor,
    teacher_BP: Tensor,
    scale: Tensor | float,
    invariance: float = 0.5,
    labels_B: Tensor | None = None,
    weights_B: Tensor | None = None,
) -> Tensor:
    """Contrastive and invariance loss of projected features.

    With ``u = f / ‖f‖`` and ``l = s · u_s u_tᵀ`` (rows: student, columns: teacher) over the batch of all ranks::

        L_con = CE(l, diagonal)
        L_inv = KL(P2 ‖ P1),   P1 = softmax(l over columns),  P2 = softmax(l over rows)ᵀ
        L     = L_con + invariance · L_inv                      mean over the batch

    Gradient flows through P1, P2 and both features. A batch of one has no negatives: its loss is zero, with a graph.
    The minimum for given features is not zero: with all of them orthogonal and student equal to teacher it is
    ``log(1 + (G − 1) e^{−s})``.

    Args:
        student_BP: projected student features.
        teacher_BP: projected teacher features. Gradient flows into them, since the projector is trained.
        scale: s, at least 0.
        invariance: factor of L_inv.
        labels_B: if given, samples of one class are not negatives of each other. Samples without a label are negatives
            of all others.
        weights_B: factors of the samples' losses, in both parts.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape("projected features", student_BP, teacher_BP)
    student_BP, teacher_BP = F.normalize(student_BP.float()), F.normalize(teacher_BP.float())
    rows_BG = scale * student_BP @ gather_batch(teacher_BP).T
    columns_BG = scale * teacher_BP @ gather_batch(student_BP).T  # the columns of l that belong to this rank's samples

    batch = len(student_BP)
    own_B = rank() * batch + torch.arange(batch, device=student_BP.device)
    no_negative_BG = torch.zeros_like(rows_BG, dtype=torch.bool)
    if labels_B is not None:
        no_negative_BG = (labels_B[:, None] == gather_batch(labels_B)[None]) & (labels_B[:, None] != UNLABELED)
        no_negative_BG = no_negative_BG.scatter(1, own_B[:, None], False)

    log_p1_BG = F.log_softmax(rows_BG.masked_fill(no_negative_BG, -torch.inf), dim=1)
    log_p2_BG = F.log_softmax(columns_BG.masked_fill(no_negative_BG, -torch.inf), dim=1)
    contrast_B = F.nll_loss(log_p1_BG, own_B, reduction="none")
    # A left-out pair has probability 0 in both; equal finite logarithms give it divergence 0 instead of 0 · (∞ − ∞).
    log_p1_BG, log_p2_BG = log_p1_BG.masked_fill(no_negative_BG, 0), log_p2_BG.masked_fill(no_negative_BG, 0)
    divergence_B = F.kl_div(log_p1_BG, log_p2_BG, log_target=True, reduction="none").sum(1)
    return weighed(contrast_B + invariance * divergence_B, weights_B).mean()


class ICD(Objective):
    """Invariant contrastive distillation on pooled features. See :func:`icd`.

    ``u_s = P_s f_s``, ``u_t = P_t f_t`` with one trained linear layer each; ``s = min(exp τ, 10)``, with τ learned and
    initialized to 1.

    Paper: Giakoumoglou and Stathaki, 2024, arXiv 2407.11802. With separate augmentations for teacher and
    student it is ICDA, arXiv 2410.09474. Total loss there: ``1·CE + a·KD(T = 4) + 1·ICD``, a = 0 or 1.

    Deviations: no additive bias on l, since softmax does not depend on it; no weight decay on τ; negatives from all
    ranks; ``mask_same_class`` is an addition.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = FeatureShapes(2, pooled=8), FeatureShapes(2, pooled=16)
        >>> icd = distill.create_objective("icd", student=student, teacher=teacher)
        >>> student, teacher = distill.Features(pooled=torch.ones(1, 8)), distill.Features(pooled=torch.ones(1, 16))
        >>> icd(student, teacher, distill.Targets(labels=torch.tensor([0]))).item()  # a batch of one has no negatives
        0.0
    """

    class Settings(Objective.Settings):
        type: Literal["icd"] = "icd"
        dim: int = Field(128, gt=0, description="width of the projected features")
        invariance: float = Field(0.5, ge=0, description="factor of the invariance term")
        mask_same_class: bool = Field(False, description="samples of the same class are not negatives")

        @property
        def needs_one_class(self) -> bool:
            return self.mask_same_class

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"tau"})
    paper: ClassVar[str] = "Giakoumoglou and Stathaki 2024, arXiv 2407.11802"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.student_projector = nn.Linear(student.pooled, settings.dim)
        self.teacher_projector = nn.Linear(require_teacher(teacher).pooled, settings.dim)
        self.tau = nn.Parameter(torch.ones(()))

    @property
    def scale(self) -> Tensor:
        return self.tau.exp().clamp(max=10)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        return icd(
            self.student_projector(student_BD),
            self.teacher_projector(teacher_BD),
            self.scale,
            self.settings.invariance,
            batch.labels if self.settings.mask_same_class else None,
            batch.weights,
        )
