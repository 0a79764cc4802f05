"""The task whose model has the largest logit.

The logits of models that were trained apart have scales of their own: a larger scale wins. ``softmax`` compares
probabilities instead, which grow as a task has fewer classes; a task of a single class always has probability 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from distill.continual.inference.base import TaskInference


class MaxLogitTask(TaskInference):
    """``s_t = max_k z_t,k``, or the largest probability.

    >>> import torch
    >>> from distill.continual.inference.max_logit import MaxLogitTask
    >>> rule = MaxLogitTask(MaxLogitTask.Settings())
    >>> rule.fit({"first": ["ash", "oak"], "second": ["elm"]})
    >>> rule.infer(logits={"first": torch.tensor([[3.0, 0.0]]), "second": torch.tensor([[2.0]])}).tolist()
    [0]
    """

    class Settings(TaskInference.Settings):
        type: Literal["max_logit"] = "max_logit"
        softmax: bool = Field(False, description="compare the largest probabilities instead of the largest logits")

    settings: Settings
    reads: ClassVar[Literal["features", "logits"]] = "logits"

    def _of_logits(self, logits_NK: Tensor) -> Tensor:
        return (logits_NK.softmax(1) if self.settings.softmax else logits_NK).amax(1)
