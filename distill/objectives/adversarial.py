"""Adversarial distillation: the student is trained against a discriminator of student and teacher features.

Shape suffixes: B batch, D pooled width.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import matched_fields, require_teacher
from distill.objectives.ranks import weighed


class _Reversed(torch.autograd.Function):
    """The identity, with the gradient times ``−factor``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def reversed_gradient(x: Tensor, factor: float | Tensor = 1.0) -> Tensor:
    """``x``; backward multiplies its gradient by ``−factor`` (Ganin and Lempitsky, 2015, arXiv 1409.7495)."""
    return _Reversed.apply(x, factor)


class Adversarial(Objective):
    """A discriminator D on pooled features (the student's through a linear projector P), trained by the same optimizer.

    ``discriminate = mean softplus(−D(f_t)) + mean softplus(D(P f_s))`` is D's loss. The student's loss is
    non-saturating, ``mean softplus(−D(P f_s))`` (``mode: alternating``: it sends no gradient to D's weights, and D's
    loss none to P f_s; both are computed in one step), or D's loss with the gradient reversed at P f_s (``mode:
    reversed``). The term is the sum of the losses.

    D is regularized by spectral norm (``regularizer: spectral``) or by ``γ/2 · mean ‖∇D(f_t)‖²`` on the teacher's
    features (``r1``).

    Papers: Goodfellow et al., 2014, arXiv 1406.2661; R1: Mescheder et al., ICML 2018, arXiv 1801.04406; spectral norm:
    Miyato et al., ICLR 2018, arXiv 1802.05957; for distillation: Xu et al., 2018, arXiv 1709.00513, and Wang et al.,
    NeurIPS 2018 (KDGAN).

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> student, teacher = FeatureShapes(2, pooled=8), FeatureShapes(2, pooled=16)
        >>> adversarial = distill.create_objective("adversarial", student=student, teacher=teacher)
        >>> adversarial.projector, adversarial.discriminator(torch.zeros(3, 16)).shape
        (Linear(in_features=8, out_features=16, bias=True), torch.Size([3, 1]))
    """

    class Settings(Objective.Settings):
        type: Literal["adversarial"] = "adversarial"
        mode: Literal["alternating", "reversed"] = Field(
            "alternating", description="the student's loss: non-saturating, or the discriminator's, gradient reversed"
        )
        regularizer: Literal["spectral", "r1", "none"] = Field("spectral", description="of the discriminator")
        r1: float = Field(1.0, ge=0, description="γ of regularizer: r1")
        hidden: int = Field(256, gt=0, description="width of the discriminator's two hidden layers")

    weighs_samples: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    paper: ClassVar[str] = "Goodfellow et al. 2014, arXiv 1406.2661; Xu et al. 2018, arXiv 1709.00513"

    settings: Settings

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        width = require_teacher(teacher).pooled
        hidden = settings.hidden
        layers: list[nn.Module] = [nn.Linear(width, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]
        if settings.regularizer == "spectral":
            layers = [spectral_norm(layer) for layer in layers]
        first, second, last = layers
        self.discriminator = nn.Sequential(first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), last)
        self.projector = nn.Linear(student.pooled, width)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        student_BD, teacher_BD = matched_fields(student, teacher, "pooled")
        fake_BD = self.projector(student_BD)
        if self.settings.mode == "reversed":
            losses_B = self.discriminate(reversed_gradient(fake_BD), teacher_BD)
        else:
            losses_B = self.discriminate(fake_BD.detach(), teacher_BD)
            losses_B = losses_B + F.softplus(-self._score_with_fixed_weights(fake_BD))
        return weighed(losses_B, batch.weights).mean()

    def discriminate(self, fake_BD: Tensor, real_BD: Tensor) -> Tensor:
        """[B]: the discriminator's losses, with ``regularizer: r1`` including its penalty."""
        r1 = self.settings.regularizer == "r1"
        real_BD = real_BD.detach().requires_grad_(r1)
        scores_B = self.discriminator(real_BD)[:, 0]
        losses_B = F.softplus(-scores_B) + F.softplus(self.discriminator(fake_BD)[:, 0])
        if r1:
            [slope_BD] = torch.autograd.grad(scores_B.sum(), real_BD, create_graph=True)
            losses_B = losses_B + self.settings.r1 / 2 * slope_BD.square().sum(1)
        return losses_B

    def _score_with_fixed_weights(self, fake_BD: Tensor) -> Tensor:
        """[B]: D's outputs, with gradient to its input but not to its weights."""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, fixed, fake_BD)[:, 0]
