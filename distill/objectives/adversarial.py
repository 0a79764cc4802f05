"""Adversarial distillation: a discriminator tells student features from teacher features, and the student fools it.

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
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradient, None


def reversed_gradient(x: Tensor, factor: float = 1.0) -> Tensor:
    """``x``; backward, its gradient comes out times ``−factor`` (Ganin and Lempitsky, 2015, arXiv 1409.7495)."""
    return _Reversed.apply(x, factor)


class Adversarial(Objective):
    """A discriminator D on pooled features (the student's through a linear projector P), trained by the same optimizer.

    ``discriminate = mean softplus(−D(f_t)) + mean softplus(D(P f_s))`` is D's loss. The student's is non-saturating,
    ``mean softplus(−D(P f_s))`` (``mode: alternating``: D's weights get no gradient from it, and P f_s none from D's
    loss; both in one step), or D's own with the gradient reversed on the way to the student (``mode: reversed``).
    The logged term is the sum of what is minimized.

    D is held smooth by spectral norm (``regularizer: spectral``) or by ``γ/2 · mean ‖∇D(f_t)‖²`` on the teacher's
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
        mode: Literal["alternating", "reversed"] = "alternating"
        regularizer: Literal["spectral", "r1", "none"] = "spectral"
        r1: float = Field(1.0, ge=0, description="γ of regularizer: r1")
        hidden: int = Field(256, gt=0, description="width of the discriminator")

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
            losses_B = self.discriminate(fake_BD.detach(), teacher_BD) + F.softplus(-self._judge_held_still(fake_BD))
        return weighed(losses_B, batch.weights).mean()

    def discriminate(self, fake_BD: Tensor, real_BD: Tensor) -> Tensor:
        """[B]: the discriminator's losses, with R1 if asked for."""
        r1 = self.settings.regularizer == "r1"
        real_BD = real_BD.detach().requires_grad_(r1)
        judged_B = self.discriminator(real_BD)[:, 0]
        losses_B = F.softplus(-judged_B) + F.softplus(self.discriminator(fake_BD)[:, 0])
        if r1:
            [slope_BD] = torch.autograd.grad(judged_B.sum(), real_BD, create_graph=True)
            losses_B = losses_B + self.settings.r1 / 2 * slope_BD.square().sum(1)
        return losses_B

    def _judge_held_still(self, fake_BD: Tensor) -> Tensor:
        """[B]: D's verdicts with gradient to its input alone."""
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        return torch.func.functional_call(self.discriminator, held, fake_BD)[:, 0]
