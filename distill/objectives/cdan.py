"""CDAN: as DANN, but the discriminator also sees which classes are predicted.

Shape suffixes: B batch, D pooled width, K classes, M width of the random maps.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import DomainClassifier


class CDAN(DomainClassifier):
    """A discriminator of the domains on ``vec(f ⊗ p)``, its gradient reversed; see :class:`DomainClassifier`.

    f are the pooled features, p the student's probabilities, without gradient. Where D·K is more than ``largest``, f
    and p pass fixed random maps to so many numbers, and their product is taken: ``(R_f f) ∘ (R_p p) / √M``. Samples
    weigh ``1 + e^(−H(p))``, so that sure predictions count more (CDAN+E).

    Paper: Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018, arXiv 1705.10667.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> own = distill.create_objective("cdan", student=FeatureShapes(2, pooled=3), hidden=4)
        >>> batch = distill.Targets(labels=torch.tensor([0, -1]), domains=torch.tensor([0, 1]))
        >>> 0 < own(distill.Features(logits=torch.zeros(2, 2), pooled=torch.randn(2, 3)), None, batch).item() < 2
        True
    """

    class Settings(DomainClassifier.Settings):
        type: Literal["cdan"] = "cdan"
        largest: int = Field(4096, gt=0, description="largest D·K; random maps of width 1,024 or less beyond it")

    reads_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"logits", "pooled"})
    domain: ClassVar[Literal["all", "target", "both"]] = "both"
    paper: ClassVar[str] = "Long et al., NeurIPS 2018, arXiv 1705.10667"

    map_DM: Tensor | None
    map_KM: Tensor | None

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        super().__init__(settings, student, teacher)
        mapped = student.pooled * student.classes > settings.largest
        for name, width in (("map_DM", student.pooled), ("map_KM", student.classes)):
            self.register_buffer(name, torch.randn(width, self.width(student)) if mapped else None)

    def width(self, student: FeatureShapes) -> int:
        size = student.pooled * student.classes
        return size if size <= self.settings.largest else min(1024, self.settings.largest)

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        f_BD, p_BK = field_of("student", student, "pooled"), field_of("student", student, "logits").softmax(1).detach()
        if self.map_DM is not None and self.map_KM is not None:
            joint_BX = (f_BD @ self.map_DM) * (p_BK @ self.map_KM) / self.map_DM.shape[1] ** 0.5
        else:
            joint_BX = (f_BD[:, :, None] * p_BK[:, None, :]).flatten(1)
        entropy_B = -torch.special.xlogy(p_BK, p_BK).sum(1)
        return self.discriminate(joint_BX, batch, 1 + (-entropy_B).exp())
