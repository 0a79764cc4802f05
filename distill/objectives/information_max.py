"""Information maximization on the target domain: confident predictions of all classes.

Shape suffixes: N target samples of all ranks, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import of_target


def information_max(logits_NK: Tensor, diversity: float = 1.0) -> Tensor:
    """``L = mean_i H(p_i) − d · H(mean_i p_i)``, H in nats. Its smallest value is −d log K.

    Args:
        logits_NK: of target samples.
        diversity: d; 0: the entropy alone, as in Tent.

    Returns:
        A scalar with a graph.
    """
    p_NK, log_p_NK = logits_NK.softmax(1), logits_NK.log_softmax(1)
    mean_K = p_NK.mean(0)
    of_mean = -(mean_K * mean_K.clamp(min=1e-8).log()).sum()
    return -(p_NK * log_p_NK).sum(1).mean() - diversity * of_mean


class InformationMax(Objective):
    """Entropy of the predictions minus the entropy of their mean, on the target domain. See :func:`information_max`.

    It pulls towards classes of equal size; where the target's are not, lower ``diversity``.

    Papers: Liang et al., SHOT, ICML 2020, arXiv 2002.08546 (d = 1); Wang et al., Tent, ICLR 2021, arXiv 2006.10726
    (``diversity: 0``).

    Example:
        >>> import torch, distill
        >>> own = distill.create_objective("information_max")
        >>> batch = distill.Targets(labels=torch.tensor([-1, -1]))
        >>> round(own(distill.Features(logits=torch.tensor([[20.0, 0], [0, 20.0]])), None, batch).item(), 4)  # −log 2
        -0.6931
    """

    class Settings(Objective.Settings):
        type: Literal["information_max"] = "information_max"
        diversity: float = Field(1.0, ge=0, description="d, factor of the entropy of the mean prediction")

    reads_teacher: ClassVar[bool] = False
    domain: ClassVar[Literal["all", "target", "both"]] = "target"
    paper: ClassVar[str] = "Liang et al., ICML 2020, arXiv 2002.08546"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        logits_NK = of_target(field_of("student", student, "logits"), batch)
        return information_max(logits_NK, self.settings.diversity) if len(logits_NK) else logits_NK.sum()
