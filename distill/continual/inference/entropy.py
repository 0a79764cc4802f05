"""The task whose model is the most certain.

The entropy of a task's probabilities is divided by its maximum, log K, so that tasks with different numbers of classes
compare. A task of a single class has no uncertainty to measure. It gets the entropy of a uniform distribution, and is
inferred only if all others are as uncertain.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from distill.continual.inference.base import TaskInference


class EntropyTask(TaskInference):
    """``s_t = Σ_k p_t,k log p_t,k / log K_t`` with ``p_t = softmax(z_t)``, in [−1, 0].

    >>> import torch
    >>> from distill.continual.inference.entropy import EntropyTask
    >>> rule = EntropyTask(EntropyTask.Settings())
    >>> rule.fit({"first": ["ash", "oak"], "second": ["elm", "fir"]})
    >>> rule.infer(logits={"first": torch.tensor([[9.0, 8.0]]), "second": torch.tensor([[0.0, 3.0]])}).tolist()
    [1]
    """

    class Settings(TaskInference.Settings):
        type: Literal["entropy"] = "entropy"

    settings: Settings
    reads: ClassVar[Literal["features", "logits"]] = "logits"

    def _of_logits(self, logits_NK: Tensor) -> Tensor:
        classes = logits_NK.shape[1]
        if classes == 1:
            return logits_NK.new_full((len(logits_NK),), -1.0)
        p_NK = logits_NK.softmax(1)
        return torch.special.xlogy(p_NK, p_NK).sum(1) / math.log(classes)
