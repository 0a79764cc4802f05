"""Batch nuclear-norm maximization on the target domain.

Shape suffixes: N target samples of all ranks, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Objective, Targets
from distill.objectives.compare import field_of
from distill.objectives.domains import of_target


def bnm(logits_NK: Tensor) -> Tensor:
    """``L = −‖P‖_* / N``, P [N, K] the probabilities, ‖·‖_* the sum of singular values.

    A large nuclear norm means predictions that are sure and of many classes; unlike an entropy of the mean, it does not
    pull towards classes of equal size.

    Args:
        logits_NK: of target samples.

    Returns:
        A scalar with a graph.
    """
    return -torch.linalg.svdvals(logits_NK.softmax(1)).sum() / len(logits_NK)


class BNM(Objective):
    """The negative nuclear norm of the target domain's predictions. See :func:`bnm`.

    Paper: Cui et al., Towards Discriminability and Diversity, CVPR 2020, arXiv 2003.12237.

    Example:
        >>> import torch, distill
        >>> own = distill.create_objective("bnm")
        >>> batch = distill.Targets(labels=torch.tensor([-1, -1]))
        >>> round(own(distill.Features(logits=torch.tensor([[20.0, 0], [0, 20.0]])), None, batch).item(), 4)
        -1.0
    """

    class Settings(Objective.Settings):
        type: Literal["bnm"] = "bnm"

    reads_teacher: ClassVar[bool] = False
    domain: ClassVar[Literal["all", "target", "both"]] = "target"
    paper: ClassVar[str] = "Cui et al., CVPR 2020, arXiv 2003.12237"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        logits_NK = of_target(field_of("student", student, "logits"), batch)
        return bnm(logits_NK) if len(logits_NK) else logits_NK.sum()
