"""Contrastive representation distillation: noise-contrastive estimation against a memory bank of all samples.

Shape suffixes: B batch of this rank, G batch of all ranks, D pooled width, P projected width, N training samples,
K negatives.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from augment.draws import Draws
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher
from distill.objectives.ranks import gather_batch, sum_over_ranks, weighed, world_size

_UNSET = -1.0


def nce(
    positive_B: Tensor, negative_BK: Tensor, counts_BK: Tensor, samples: int, weights_B: Tensor | None = None
) -> Tensor:
    """Noise-contrastive estimation with uniform noise, mean over the batch.

    ``L = −log h⁺ / (h⁺ + M/N) − Σ_k log (M/N) / (h_k + M/N)`` with ``h = exp(u·m / τ) / Z`` and M the number of the
    sample's negatives. With logits ``x = log h − log M/N`` it is computed as ``softplus(−x⁺) + Σ_k softplus(x_k)``.

    Args:
        positive_B: log h of each sample with its own row of the bank.
        negative_BK: log h with the drawn rows.
        counts_BK: bool, which of the drawn rows are negatives of the sample.
        samples: N, number of training samples.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.
    """
    # Without negatives M is 0, so the logit of the positive is +inf and its loss 0.
    noise_B = (counts_BK.sum(1) / samples).log()
    negative_BK = (negative_BK - noise_B[:, None]).masked_fill(~counts_BK, -torch.inf)
    return weighed(F.softplus(noise_B - positive_B) + F.softplus(negative_BK).sum(1), weights_B).mean()


class CRD(Objective):
    """Contrastive representation distillation on pooled features, in both directions. See :func:`nce`.

    ``u_s = P_s f_s / ‖·‖``, ``u_t = P_t f_t / ‖·‖`` with one trained linear layer each. Two banks hold a vector
    of every training sample, one for each network, ``m ← normalize(momentum · m + (1 − momentum) · u)`` whenever the
    sample is in a batch. The student's u is compared with the teacher's bank, the teacher's with the student's. Z is
    set by the first batch such that the mean of h is 1 / N, and then stays fixed.

    Paper: Tian, Krishnan and Isola, Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699: 128
    dimensions, K 16384, τ 0.07, momentum 0.5; weight 0.8.

    Deviations, for speed: one set of K rows is drawn per batch, uniformly with replacement, and those of other classes
    are a sample's negatives (for unlabeled samples, those of other samples). The usual code draws K rows for every
    sample in the loader and reads ``B · K`` rows of both banks, this one K. The number of negatives M then varies by
    sample and replaces K in the loss. The draws are keyed by the step, so that all ranks have the same and a resumed
    run repeats them. The banks are on the device: ``2 · N · 128`` floats, 51 MB for 50,000 samples.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = FeatureShapes(2, pooled=8), FeatureShapes(2, pooled=16)
        >>> crd = distill.create_objective("crd", student=student, teacher=teacher)
        >>> crd.remember(labels=torch.tensor([0, 1, 0, 1, 0]))  # of the training split
        >>> crd.student_bank.shape, crd.teacher_bank.shape
        (torch.Size([5, 128]), torch.Size([5, 128]))
    """

    class Settings(Objective.Settings):
        type: Literal["crd"] = "crd"
        weight: float = Field(0.8, ge=0, description="factor of this term in the sum")
        dim: int = Field(128, gt=0, description="width of the projected features")
        negatives: int = Field(16384, gt=0, description="rows of the bank drawn for each batch, K")
        temperature: float = Field(0.07, gt=0, description="τ")
        momentum: float = Field(0.5, ge=0, lt=1, description="weight of the old vector when a row of a bank is updated")

        @property
        def needs_one_class(self) -> bool:
            return True

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    needs_index: ClassVar[bool] = True
    paper: ClassVar[str] = "Tian et al., ICLR 2020, arXiv 1910.10699"

    settings: Settings
    student_bank: Tensor
    teacher_bank: Tensor
    labels: Tensor
    normalizer: Tensor
    steps: Tensor

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.student_projector = nn.Linear(student.pooled, settings.dim)
        self.teacher_projector = nn.Linear(require_teacher(teacher).pooled, settings.dim)
        self.register_buffer("normalizer", torch.full((2,), _UNSET))
        self._scaled = [False, False]
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def remember(self, labels: Tensor) -> None:
        """Create both banks: [N, dim], random unit vectors."""
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, F.normalize(torch.randn(len(labels), self.settings.dim)))
        self.register_buffer("labels", labels.clone(), persistent=False)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        index_B, samples = batch.indices(), len(self.labels)
        rows_K = Draws(0, 0, "crd", self.steps).integers(0, 0, samples, (self.settings.negatives,))[0]
        own_labels_B, drawn_labels_K = self.labels[index_B][:, None], self.labels[rows_K]
        counts_BK = (index_B[:, None] != rows_K) & ((own_labels_B != drawn_labels_K) | (own_labels_B == UNLABELED))
        student_BP = F.normalize(self.student_projector(student_BD))
        teacher_BP = F.normalize(self.teacher_projector(teacher_BD))
        total = torch.zeros((), device=student_BD.device)
        for side, (rows_BP, bank_NP) in enumerate([(student_BP, self.teacher_bank), (teacher_BP, self.student_bank)]):
            rows_BP = rows_BP / self.settings.temperature
            positive_B, negative_BK = (rows_BP * bank_NP[index_B]).sum(1), rows_BP @ bank_NP[rows_K].T
            scale = self._scale(side, positive_B, negative_BK, samples)
            total = total + nce(positive_B - scale, negative_BK - scale, counts_BK, samples, batch.weights)
        self._keep(index_B, student_BP, teacher_BP)
        return total

    @torch.no_grad()
    def _scale(self, side: int, positive_B: Tensor, negative_BK: Tensor, samples: int) -> Tensor:
        """log Z, from N times the mean over the first batch of all ranks, without synchronizing with the device."""
        if not self._scaled[side]:  # in this process; a resumed run has loaded it
            mean = sum_over_ranks(torch.cat([positive_B[:, None], negative_BK], dim=1).exp().mean()) / world_size()
            self.normalizer[side] = torch.where(self.normalizer[side] == _UNSET, mean, self.normalizer[side])
            self._scaled[side] = True
        return (self.normalizer[side] * samples).log()

    @torch.no_grad()
    def _keep(self, index_B: Tensor, student_BP: Tensor, teacher_BP: Tensor) -> None:
        index_G, momentum = gather_batch(index_B), self.settings.momentum
        for bank_NP, rows_BP in ((self.student_bank, student_BP), (self.teacher_bank, teacher_BP)):
            rows_GP = gather_batch(rows_BP.detach())
            bank_NP[index_G] = F.normalize(momentum * bank_NP[index_G] + (1 - momentum) * rows_GP)
        self.steps += 1
