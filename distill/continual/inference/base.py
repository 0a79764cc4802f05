"""The base class of task inference: scores [N, T] of an image's tasks, from its features or the logits of all tasks.

Each image is scored from itself alone. A vote over the batch would need a batch of one task, and falls apart at batch
size 1.

Shape suffixes: N images, D feature width, T tasks, K classes of a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

import augment.base
from augment.base import Component
from distill.continual.errors import ContinualError
from distill.continual.heads.base import FittedHead, Head
from distill.continual.heads.sums import Sums


class TaskInference(Component):
    """A rule that gives the task of an image.

    ``fit`` first, again after each task; then ``scores`` or ``infer`` with the features of the backbone without deltas
    (``reads`` is ``features``), or with the logits of the model of each task (``logits``).

    Class attributes:
        reads: what it scores.
    """

    class Settings(augment.base.Settings):
        type: str

    reads: ClassVar[Literal["features", "logits"]]

    def __init__(self, settings: Settings):
        self.settings = settings
        self.tasks: tuple[str, ...] = ()

    def head(self) -> Head | None:
        """The head whose sums ``fit`` reads, for ``HeadSums``; None if it reads logits."""
        return None

    def fit(self, tasks: Mapping[str, Sequence[str]], sums: Sums | None = None) -> None:
        """Learn the tasks.

        Args:
            tasks: name of each task seen so far → names of its classes.
            sums: of the head that ``head()`` gives, over all tasks; those that read logits need none.

        Raises:
            ContinualError: there is no task, one has no class, or sums are missing.
        """
        if not tasks:
            raise ContinualError("task inference needs at least one task")
        if empty := [name for name, classes in tasks.items() if not classes]:
            raise ContinualError(f"task {empty[0]!r} has no class")
        self.tasks = tuple(tasks)

    def infer(self, features_ND: Tensor | None = None, logits: Mapping[str, Tensor] | None = None) -> Tensor:
        """Index of each image's task in ``tasks``, [N] int64; the earlier task of equal ones.

        Args:
            features_ND: see ``scores``.
            logits: see ``scores``.
        """
        return self.scores(features_ND, logits).argmax(1)

    def scores(self, features_ND: Tensor | None = None, logits: Mapping[str, Tensor] | None = None) -> Tensor:
        """Score of each task, [N, T] float32; the largest is the image's.

        Args:
            features_ND: pooled features, if ``reads`` is ``features``.
            logits: name of each task → [N, K], if ``reads`` is ``logits``.

        Raises:
            ContinualError: it is not fitted, or what it reads is missing.
        """
        if not self.tasks:
            raise ContinualError(f"task inference {self.settings.type} is not fitted")
        if self.reads == "features":
            if features_ND is None:
                raise ContinualError(f"task inference {self.settings.type} reads features")
            return self._of_features(features_ND)
        if logits is None or set(logits) != set(self.tasks):
            raise ContinualError(
                f"task inference {self.settings.type} reads logits of the tasks {', '.join(self.tasks)}"
            )
        return torch.stack([self._of_logits(logits[task].float()) for task in self.tasks], dim=1)

    def _of_features(self, features_ND: Tensor) -> Tensor:
        raise NotImplementedError

    def _of_logits(self, logits_NK: Tensor) -> Tensor:
        """Score [N] of one task."""
        raise NotImplementedError


class ByHead(TaskInference):
    """The task of the class that a head over the classes of all tasks predicts: the best logit within each task."""

    reads: ClassVar[Literal["features", "logits"]] = "features"

    def head(self) -> Head:
        raise NotImplementedError

    def fit(self, tasks: Mapping[str, Sequence[str]], sums: Sums | None = None) -> None:
        super().fit(tasks, sums)
        if sums is None:
            raise ContinualError(f"task inference {self.settings.type} is fitted from sums")
        fitted = self.head().fit(sums)
        # Columns of a task side by side; a class of two tasks (domains) counts for both, so the first of them wins.
        self._head: FittedHead = fitted.for_classes([name for classes in tasks.values() for name in classes])
        self._sizes = [len(classes) for classes in tasks.values()]

    def _of_features(self, features_ND: Tensor) -> Tensor:
        parts = self._head.logits(features_ND).split(self._sizes, dim=1)
        return torch.stack([part.amax(1) for part in parts], dim=1)
