"""Herding: images of each class whose mean feature stays close to the class mean.

``p_k = argmin_x ‖μ − (φ(x) + Σ_{j<k} φ(p_j)) / k‖`` with L2-normalized features φ and μ the mean of φ over the class's
candidates. The first m images are the selection of size m, so that a class gives up places from the end of its list.

A class whose candidates are all in memory keeps its ranks: the mean of its full data is gone, and the order that was
chosen with it is better than a new one. A class with new images is herded anew over the candidates that there are.

Paper: Rebuffi et al., iCaRL, arXiv 1611.07725; Welling, Herding Dynamical Weights to Learn, 2009.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.continual.memory.base import Candidates, Memory, Selection, joined, quotas


def herded(features_ND: Tensor, count: int) -> Tensor:
    """Rows of the first ``count`` images (or all, if there are fewer), best first; the first row of equal ones.

    Args:
        features_ND: of one class.
        count: how many.
    """
    phi_ND = F.normalize(features_ND.double(), dim=1)
    mean_D, total_D = phi_ND.mean(0), torch.zeros_like(phi_ND[0])
    free_N = torch.ones(len(phi_ND), dtype=torch.bool)
    chosen: list[int] = []
    for k in range(1, min(count, len(phi_ND)) + 1):
        distance_N = (mean_D - (phi_ND + total_D) / k).square().sum(1)
        row = int(distance_N.masked_fill(~free_N, float("inf")).argmin())
        chosen.append(row)
        total_D, free_N[row] = total_D + phi_ND[row], False
    return torch.tensor(chosen, dtype=torch.int64)


class HerdingMemory(Memory):
    """``p_k = argmin_x ‖μ − (φ(x) + Σ_{j<k} φ(p_j)) / k‖``, with equally many images of each class.

    >>> import torch
    >>> from distill.continual.memory.base import Candidates
    >>> from distill.continual.memory.herding import HerdingMemory
    >>> memory = HerdingMemory(HerdingMemory.Settings(budget=1))
    >>> angles = torch.tensor([0.0, 0.4, 1.0])
    >>> features = torch.stack([angles.cos(), angles.sin()], dim=1)
    >>> memory.select(Candidates(torch.arange(3), ["ash"] * 3, features), 1).rows  # the one in the middle
    tensor([1])
    """

    class Settings(Memory.Settings):
        type: Literal["herding"] = "herding"

    settings: Settings
    needs_features: ClassVar[bool] = True

    def _select(self, candidates: Candidates, capacity: int) -> Selection:
        classes = candidates.by_class()
        places = quotas(list(classes), capacity)
        chosen = []
        for name, rows in classes.items():
            ranks = torch.full_like(rows, -1) if candidates.ranks is None else candidates.ranks[rows]
            if bool((ranks >= 0).all()):
                chosen.append(rows[ranks.argsort()][: places[name]])
            else:
                assert candidates.features is not None
                chosen.append(rows[herded(candidates.features[rows].cpu(), places[name])])
        return joined(chosen)
