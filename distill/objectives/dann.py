"""DANN: features from which a discriminator cannot tell the domains.

Shape suffixes: B batch, D pooled width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import DomainClassifier


class DANN(DomainClassifier):
    """A discriminator of the domains on pooled features, its gradient reversed; see :class:`DomainClassifier`.

    Paper: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, arXiv 1505.07818. Deviation: λ rises
    with the number of updates instead of the fraction of the training (``2/(1 + e^(−10 p)) − 1`` in the paper), so a
    longer training begins the same.

    Example:
        >>> import torch, distill
        >>> from distill.models.features import FeatureShapes
        >>> own = distill.create_objective("dann", student=FeatureShapes(2, pooled=3), hidden=4)
        >>> batch = distill.Targets(labels=torch.tensor([0, -1]), domains=torch.tensor([0, 1]))
        >>> 0 < own(distill.Features(pooled=torch.randn(2, 3)), None, batch).item() < 2
        True
    """

    class Settings(DomainClassifier.Settings):
        type: Literal["dann"] = "dann"

    reads_teacher: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})
    domain: ClassVar[Literal["all", "target", "both"]] = "both"
    paper: ClassVar[str] = "Ganin et al., JMLR 2016, arXiv 1505.07818"

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return self.discriminate(field_of("student", student, "pooled"), batch)
