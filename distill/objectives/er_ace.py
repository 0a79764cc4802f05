"""ER-ACE: new samples are classified among the classes of the new samples alone, memory samples among all classes.

Shape suffixes: B batch, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import UNLABELED, Objective, Targets
from distill.objectives.compare import field_of, shape
from distill.objectives.ranks import mean_where, sum_over_ranks


def er_ace(
    logits_BK: Tensor, labels_B: Tensor, is_memory_B: Tensor | None = None, weights_B: Tensor | None = None
) -> Tensor:
    """Asymmetric cross-entropy: ``L = mean over new CE(z restricted to C, y) + mean over memory CE(z, y)``.

    C are the classes of the labeled new samples in the batch of all ranks. So new classes do not push down the logits
    of old ones, which are not in C. Zero, with a graph, if no sample has a label.

    Args:
        logits_BK: student logits.
        labels_B: class indices, ``UNLABELED`` for samples without a label.
        is_memory_B: bool, which samples come from the memory; None: no sample does.
        weights_B: factors of the samples' losses.

    Returns:
        A scalar with a graph.

    Raises:
        ValueError: labels or ``is_memory_B`` do not match the batch.
    """
    for name, values in (("labels", labels_B), ("is_memory", is_memory_B)):
        if values is not None and values.shape != logits_BK.shape[:1]:
            raise ValueError(f"{name} of shape {shape(values)} do not match logits of shape {shape(logits_BK)}")
    logits_BK, labeled_B = logits_BK.float(), labels_B != UNLABELED
    memory_B = torch.zeros_like(labeled_B) if is_memory_B is None else is_memory_B
    new_B, old_B = labeled_B & ~memory_B, labeled_B & memory_B

    classes_K = torch.arange(logits_BK.shape[1], device=logits_BK.device)
    counts_K = sum_over_ranks(((labels_B[:, None] == classes_K) & new_B[:, None]).sum(0))
    left_out_K = (counts_K == 0) & counts_K.any()  # without new samples nothing is left out: their mean is zero anyway
    restricted_BK = logits_BK.masked_fill(left_out_K, -torch.inf)
    parts = []
    for z_BK, part_B in ((restricted_BK, new_B), (logits_BK, old_B)):
        targets_B = labels_B.where(part_B, UNLABELED)
        losses_B = F.cross_entropy(z_BK, targets_B, ignore_index=UNLABELED, reduction="none")
        parts.append(mean_where(losses_B, part_B, weights_B))
    return parts[0] + parts[1]


class ERACE(Objective):
    """Experience replay with asymmetric cross-entropy, in the place of ``ce``. See :func:`er_ace`.

    Which samples come from the memory is in the batch (``Targets.is_memory``), filled by the data of a stream.

    Paper: Caccia et al., New Insights on Reducing Abrupt Representation Change in Online Continual Learning, ICLR 2022,
    arXiv 2104.05025.

    Example:
        >>> import torch, distill
        >>> er_ace = distill.create_objective("er_ace")
        >>> logits, labels = torch.zeros(2, 4), torch.tensor([0, 3])
        >>> batch = distill.Targets(labels=labels, is_memory=torch.tensor([False, True]))
        >>> round(er_ace(distill.Features(logits=logits), None, batch).item(), 4)  # log 1 + log 4
        1.3863
    """

    class Settings(Objective.Settings):
        type: Literal["er_ace"] = "er_ace"

        @property
        def needs_one_class(self) -> bool:
            return True

    reads_teacher: ClassVar[bool] = False
    reads_memory: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True
    weighs_samples: ClassVar[bool] = True
    paper: ClassVar[str] = "Caccia et al., ICLR 2022, arXiv 2104.05025"

    settings: Settings

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        return er_ace(field_of("student", student, "logits"), batch.labels, batch.is_memory, batch.weights)
