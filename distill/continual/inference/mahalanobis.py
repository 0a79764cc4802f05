"""The task of the nearest class mean in the distance of Mahalanobis, with one covariance within classes for all tasks.

Paper: Lee et al., arXiv 1807.03888. Deviation: the covariance is shrunk as for the head ``slda``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.continual.heads.base import Head
from distill.continual.heads.slda import SLDA
from distill.continual.inference.base import ByHead, TaskInference


class MahalanobisTask(ByHead):
    """``s_t = max_{c in t} −(f − μ_c)ᵀ Λ (f − μ_c) / 2``, up to a part that is equal for all tasks.

    >>> import torch
    >>> from distill.continual.inference.mahalanobis import MahalanobisTask
    >>> rule = MahalanobisTask(MahalanobisTask.Settings())
    >>> head = rule.head()
    >>> sums = head.new_sums(1)
    >>> features = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    >>> head.update(sums, features, torch.tensor([0, 0, 1, 1]), ["ash", "elm"])
    >>> rule.fit({"first": ["ash"], "second": ["elm"]}, sums)
    >>> rule.infer(torch.tensor([[2.0], [4.0]])).tolist()
    [0, 1]
    """

    class Settings(TaskInference.Settings):
        type: Literal["mahalanobis"] = "mahalanobis"
        shrinkage: float = Field(
            0.3, gt=0, le=1, description="weight of the sphere with the covariance's mean diagonal; 1: nearest mean"
        )

    settings: Settings

    def head(self) -> Head:
        return SLDA(SLDA.Settings(shrinkage=self.settings.shrinkage))
