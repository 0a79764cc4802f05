"""Self-training: the confident predictions of the EMA teacher are labels of the target domain.

Shape suffixes: B batch, N target samples of all ranks, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import matched_fields
from distill.objectives.domains import of_target, target_mask
from distill.objectives.ranks import mean_where


def self_training(
    student_BK: Tensor, teacher_BK: Tensor, target_B: Tensor, threshold: float = 0.9, soft: bool = False
) -> Tensor:
    """``L = (1/N) Σ_i [max_k q_ik ≥ τ] · H(ŷ_i, p_i)`` over the N target samples, confident or not.

    q = softmax(teacher), p = softmax(student); ŷ is one at the teacher's most likely class, or q itself if ``soft``.

    Args:
        student_BK: logits of the strong or masked view.
        teacher_BK: logits of the weak view; no gradient flows into them. Rows of the source domain are not read.
        target_B: bool, the samples of the target domain.
        threshold: τ.
        soft: whether q is the label.

    Returns:
        A scalar with a graph; zero if no target sample is confident.
    """
    q_BK = teacher_BK.detach().where(target_B[:, None], 0).softmax(1)
    confidence_B, label_B = q_BK.max(1)
    log_p_BK = student_BK.log_softmax(1)
    losses_B = -(q_BK * log_p_BK).sum(1) if soft else F.nll_loss(log_p_BK, label_B, reduction="none")
    confident_B = (confidence_B >= threshold) + 0 * confidence_B  # NaN stays NaN
    return mean_where(losses_B * confident_B, target_B)


def imbalance(student_NK: Tensor, prior_K: Tensor) -> Tensor:
    """``KL(π ‖ p̄)``, p̄ the mean of the student's probabilities: 0 if it predicts each class as often as the prior π.

    Args:
        student_NK: logits of target samples.
        prior_K: π, of sum 1.

    Returns:
        A scalar with a graph.
    """
    log_mean_K = student_NK.log_softmax(1).logsumexp(0) - torch.tensor(float(len(student_NK))).log()
    return (torch.special.xlogy(prior_K, prior_K) - prior_K * log_mean_K).sum()


class SelfTraining(Objective):
    """Cross-entropy with the EMA teacher's confident predictions, and a term for the balance of the classes.

    See :func:`self_training` and :func:`imbalance`. It reads the target domain's samples; in a run with one domain
    (source-free), all of them. The teacher (``teacher.ema``) sees the weak view, the student the strong one; a
    ``MaskBlocks`` operation in the student's recipe makes it MIC. Samples whose teacher is not confident count in N, as
    in FixMatch. Without the balance, a class that is predicted a little too often takes over the others.

    Papers: French et al., Self-ensembling for visual domain adaptation, ICLR 2018, arXiv 1706.05208 (EMA teacher,
    confidence, class balance); Sohn et al., FixMatch, NeurIPS 2020, arXiv 2001.07685 (hard labels); Hoyer et al., MIC,
    CVPR 2023, arXiv 2212.01322 (masks). Deviation: French et al. compare p̄ with equal classes by a binary
    cross-entropy; here it is a KL divergence to the classes' shares in the source.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> own = distill.create_objective("self_training", student=FeatureShapes(2, pooled=3), balance=0)
        >>> student, teacher = distill.Features(logits=torch.zeros(2, 2)), torch.tensor([[9.0, 0], [0.1, 0]])
        >>> batch = distill.Targets(labels=torch.tensor([-1, -1]))
        >>> round(own(student, distill.Features(logits=teacher), batch).item(), 4)  # log 2, of one of two samples
        0.3466
    """

    class Settings(Objective.Settings):
        type: Literal["self_training"] = "self_training"
        threshold: float = Field(0.9, ge=0, le=1, description="τ, smallest confidence of the teacher")
        soft: bool = Field(False, description="the teacher's probabilities are the label, not its most likely class")
        balance: float = Field(0.1, ge=0, description="factor of the term for the balance of the classes; 0: none")
        prior: Literal["source", "uniform"] = Field(
            "source", description="π: shares of the classes in the source's labels (uniform without labels), or equal"
        )

        @property
        def needs_one_class(self) -> bool:
            return True

    reads_momentum: ClassVar[bool] = True
    domain: ClassVar[Literal["all", "target", "both"]] = "target"
    paper: ClassVar[str] = "French et al., ICLR 2018, arXiv 1706.05208; Hoyer et al., CVPR 2023, arXiv 2212.01322"

    settings: Settings
    prior_K: Tensor

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        uniform_K = torch.full((student.classes,), 1 / max(student.classes, 1))
        self.register_buffer("prior_K", uniform_K, persistent=False)

    def remember(self, labels: Tensor) -> None:
        """Take the shares of the classes from the labels [N] of the training split."""
        labeled = labels[labels != UNLABELED]
        if self.settings.prior == "source" and len(labeled):
            self.prior_K = labeled.bincount(minlength=len(self.prior_K)).float() / len(labeled)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        s = self.settings
        student_BK, teacher_BK = matched_fields(student, teacher, "logits")
        loss = self_training(student_BK, teacher_BK, target_mask(batch), s.threshold, s.soft)
        if s.balance and len(target_NK := of_target(student_BK, batch)):
            loss = loss + s.balance * imbalance(target_NK, self.prior_K)
        return loss
