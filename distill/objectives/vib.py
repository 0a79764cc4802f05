"""Information bottleneck: predicts the teacher's feature from a noisy code of the student's, of limited rate.

Shape suffixes: B batch, D pooled width, Z code width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from augment.draws import Draws
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher
from distill.objectives.pooled import Distance, pooled
from distill.objectives.ranks import weighed


def code_length(mean_BZ: Tensor, variance_BZ: Tensor, weights_B: Tensor | None = None) -> Tensor:
    """``KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ (μ² + σ² − 1 − log σ²)`` in nats, weighted by sample, mean over the batch.

    Args:
        mean_BZ: μ.
        variance_BZ: σ².
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph, in nats.
    """
    of_sample_B = 0.5 * (mean_BZ.square() + variance_BZ - 1 - variance_BZ.log()).sum(1)
    return weighed(of_sample_B, weights_B).mean()


class VIB(Objective):
    """Distillation through a variational information bottleneck.

    ``μ, σ = E f_s`` (a linear layer each, σ through softplus), a code ``z = μ + σ ε`` with ε ~ N(0, 1), and a linear
    decoder::

        L = d(D z, f_t) + β · KL(N(μ, σ²) ‖ N(0, 1))

    with d as in :func:`distill.objectives.pooled.pooled`. Information in the code that does not predict the
    teacher's feature increases the KL term without lowering d, so training removes it.

    Paper: Alemi et al., Deep Variational Information Bottleneck, ICLR 2017, arXiv 1612.00410; with
    β 1e-3 there, for labels.

    Deviations: the target is the teacher's feature, not the label; ε is keyed by sample and step, so that it is the
    same for any number of ranks and in a resumed run.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = FeatureShapes(2, pooled=8), FeatureShapes(2, pooled=16)
        >>> vib = distill.create_objective("vib", dim=4, student=student, teacher=teacher)
        >>> student, teacher = distill.Features(pooled=torch.ones(1, 8)), distill.Features(pooled=torch.ones(1, 16))
        >>> vib(student, teacher, distill.Targets(labels=torch.tensor([0]), index=torch.tensor([0]))).shape
        torch.Size([])
    """

    class Settings(Objective.Settings):
        type: Literal["vib"] = "vib"
        dim: int = Field(128, gt=0, description="width of the code")
        beta: float = Field(1e-3, ge=0, description="β, loss per nat of the code")
        distance: Distance = Field("cosine", description="distance between the decoded code and the teacher's feature")

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    needs_index: ClassVar[bool] = True
    paper: ClassVar[str] = "Alemi et al., ICLR 2017, arXiv 1612.00410"

    settings: Settings
    steps: Tensor

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        self.mean = nn.Linear(student.pooled, settings.dim)
        self.spread = nn.Linear(student.pooled, settings.dim)
        self.decoder = nn.Linear(settings.dim, require_teacher(teacher).pooled)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        mean_BZ = self.mean(student_BD)
        # As in the paper, σ is about 1/e before training, away from 0, where log σ² is unbounded.
        spread_BZ = F.softplus(self.spread(student_BD) - 1) + 1e-6
        code_BZ = mean_BZ + spread_BZ * self._noise(batch.indices(), mean_BZ.shape[1])
        length = code_length(mean_BZ, spread_BZ.square(), batch.weights)
        error = pooled(self.decoder(code_BZ), teacher_BD, self.settings.distance, batch.weights)
        return error + self.settings.beta * length

    def _noise(self, index_B: Tensor, width: int) -> Tensor:
        """[B, width] standard normal, drawn by sample and step."""
        noise = Draws(0, 0, "vib", index_B + (self.steps << 32)).normal(0, (width,))
        self.steps += 1
        return noise
