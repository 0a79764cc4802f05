"""DER++: memory samples keep the logits that they were stored with, and their labels.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import field_of, same_shape, shape
from distill.objectives.ranks import mean_where


def der(
    logits_BK: Tensor,
    labels_B: Tensor,
    is_memory_B: Tensor | None,
    stored_BK: Tensor | None,
    alpha: float = 0.3,
    beta: float = 0.5,
    weights_B: Tensor | None = None,
) -> Tensor:
    """``L = α · mean over memory (1/K) ‖z − z_stored‖² + β · mean over labeled memory CE(z, y)``.

    Classes whose stored logit is NaN are left out of the distance: those that the student did not have when the sample
    was stored. So is a sample whose logits are all NaN: one that is shown in another view than the stored one. Zero,
    with a graph, if no sample comes from the memory.

    Args:
        logits_BK: student logits.
        labels_B: class indices, ``UNLABELED`` for samples without a label.
        is_memory_B: bool, which samples come from the memory; None: no sample does.
        stored_BK: the logits that the memory samples were stored with; other rows are not read.
        alpha: α.
        beta: β; 0: DER.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: the shapes differ, or memory samples have no stored logits and α is not 0.
    """
    if labels_B.shape != logits_BK.shape[:1]:
        raise ValueError(f"labels of shape {shape(labels_B)} do not match logits of shape {shape(logits_BK)}")
    logits_BK = logits_BK.float()
    memory_B = torch.zeros_like(labels_B, dtype=torch.bool) if is_memory_B is None else is_memory_B
    if stored_BK is None:
        if is_memory_B is not None and alpha:
            raise ValueError("der compares logits with those that memory samples were stored with, and there are none")
        stored_BK = logits_BK.detach()
    same_shape("logits (the teacher's are the stored ones)", logits_BK, stored_BK)
    stored_BK = stored_BK.detach().float().where(memory_B[:, None], torch.nan)
    known_BK = ~stored_BK.isnan()
    squares_BK = (logits_BK - stored_BK.where(known_BK, 0)).square().masked_fill(~known_BK, 0)
    distance_B = squares_BK.sum(1) / known_BK.sum(1).clamp(min=1)
    labeled_B = memory_B & (labels_B != UNLABELED)
    losses_B = F.cross_entropy(
        logits_BK, labels_B.where(labeled_B, UNLABELED), ignore_index=UNLABELED, reduction="none"
    )
    of_logits = mean_where(distance_B, memory_B & known_BK.any(1), weights_B)
    of_labels = mean_where(losses_B, labeled_B, weights_B)
    return alpha * of_logits + beta * of_labels


class DER(Objective):
    """Dark experience replay, DER++: stored logits and labels of memory samples. See :func:`der`.

    ``ce`` beside it is the loss of the new samples; it also has the memory samples of the batch. Which samples come
    from the memory and their stored logits are in the batch (``Targets.is_memory``, ``Targets.stored_logits``), filled
    by the data of a stream, whose memory must store logits.

    Paper: Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS 2020,
    arXiv 2004.07211; α 0.3 and β 0.5 for CIFAR-100 with a memory of 500.

    Deviation: DER++ draws samples twice, one time for each part; here the logits are those of every second sample of
    the batch, shown in the very view that they are of, and the labels those of all. Mammoth compares other views.

    Example:
        >>> import torch, distill
        >>> der = distill.create_objective("der", alpha=1, beta=0)
        >>> batch = distill.Targets(
        ...     torch.tensor([0, 1]), is_memory=torch.tensor([False, True]), stored_logits=torch.full((2, 4), 2.0)
        ... )
        >>> der(distill.Features(logits=torch.zeros(2, 4)), None, batch).item()  # the memory sample's (0 − 2)²
        4.0
    """

    class Settings(Objective.Settings):
        type: Literal["der"] = "der"
        alpha: float = Field(0.3, ge=0, description="α, factor of the distance to the stored logits")
        beta: float = Field(0.5, ge=0, description="β, factor of the cross-entropy of memory samples")

        @property
        def needs_one_class(self) -> bool:
            return True

    reads_teacher: ClassVar[bool] = False
    reads_memory: ClassVar[bool] = True
    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Buzzega et al., NeurIPS 2020, arXiv 2004.07211"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        s, logits_BK = self.settings, field_of("student", student, "logits")
        return der(logits_BK, batch.labels, batch.is_memory, batch.stored_logits, s.alpha, s.beta, batch.weights)
