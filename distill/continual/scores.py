"""Accuracies after a task: model → setting → task → how many test images are right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from distill.continual.metrics import NAN
from distill.data.base import UNLABELED
from distill.training.evaluate import Predictions

Setting = Literal["task", "class", "domain", "representation"]
"""``task``: the task of an image is known, and its classes alone compete; ``class``: all classes seen so far compete;
``domain``: all tasks have the same classes, and the task is unknown; ``representation``: all classes of the stream
compete, in a classifier that is fitted for the evaluation alone, on the features of all tasks' training images."""


class Accuracy(BaseModel):
    """Test images of one task, and how many of them are right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    correct: int
    images: int


class TaskScores(BaseModel):
    """The scores of some models after one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    scores: dict[str, dict[Setting, dict[str, Accuracy]]]
    """Model → setting → task → score."""
    served: dict[str, int] = {}
    """Model → bytes that prediction needs, besides the backbone."""
    kept: dict[str, int] = {}
    """Model → bytes that are kept for later tasks, with what is served."""
    peak: dict[str, int] = {}
    """Model → the most bytes at any time of learning this task; a model without one needs no more than it keeps."""
    backbone: int = 0
    """Bytes of the backbone's weights without its head; 0: not known here."""
    seconds: dict[str, float] = {}
    """Model → wall time of learning this task."""


def score(predictions: Predictions) -> Accuracy:
    """Score of the labeled images."""
    labeled = predictions.labels != UNLABELED
    right = predictions.classes[labeled] == predictions.labels[labeled]
    return Accuracy(correct=int(right.sum()), images=int(labeled.sum()))


def masked(logits_NK: Tensor, classes: Sequence[str], among: Iterable[str]) -> Tensor:
    """Logits in which only some classes compete.

    Args:
        logits_NK: of all classes.
        classes: names of the K columns.
        among: names of those that compete.

    Returns:
        [N, K], −∞ for the other classes.
    """
    allowed = torch.tensor([name in set(among) for name in classes])
    return logits_NK.masked_fill(~allowed, -torch.inf)


def accuracy_matrix(
    tasks: Sequence[str], stages: Sequence[TaskScores], model: str, setting: Setting
) -> tuple[np.ndarray, np.ndarray]:
    """The accuracy matrix of a model.

    Args:
        tasks: names of all tasks, in their order.
        stages: after each task, in the same order.
        model: whose.
        setting: of the evaluation.

    Returns:
        a [T, T] with NaN where nothing was measured, and the number of test images of each task [T].
    """
    a_TT, images_T = np.full((len(tasks), len(tasks)), NAN), np.zeros(len(tasks), dtype=int)
    for row, stage in enumerate(stages):
        of_model: Mapping[str, Accuracy] = stage.scores.get(model, {}).get(setting, {})
        for column, task in enumerate(tasks):
            if (own := of_model.get(task)) is not None:
                images_T[column] = own.images
                if own.images:
                    a_TT[row, column] = own.correct / own.images
    return a_TT, images_T
