"""The task of the nearest class mean."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distill.continual.heads.base import Head
from distill.continual.heads.ncm import NearestClassMean
from distill.continual.inference.base import ByHead, TaskInference


class NearestMeanTask(ByHead):
    """``s_t = max_{c in t} −‖f − μ_c‖²/2`` (or the cosine), up to a part that is equal for all tasks.

    >>> import torch
    >>> from distill.continual.inference.ncm import NearestMeanTask
    >>> rule = NearestMeanTask(NearestMeanTask.Settings())
    >>> head = rule.head()
    >>> sums = head.new_sums(1)
    >>> head.update(sums, torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0, 1, 2]), ["ash", "oak", "elm"])
    >>> rule.fit({"first": ["ash", "oak"], "second": ["elm"]}, sums)
    >>> rule.infer(torch.tensor([[2.0], [4.0]])).tolist()
    [0, 1]
    """

    class Settings(TaskInference.Settings):
        type: Literal["ncm"] = "ncm"
        distance: Literal["euclid", "cosine"] = Field("euclid", description="between a feature and a class mean")

    settings: Settings

    def head(self) -> Head:
        return NearestClassMean(NearestClassMean.Settings(distance=self.settings.distance))
