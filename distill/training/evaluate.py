"""Predictions of a network over a split: each sample once, in any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parametrize

from augment.chain import eval_view
from augment.views import InputSpec
from distill.data.base import UNLABELED


@dataclass(frozen=True)
class Predictions:
    """What a network said of a split, on the CPU, ordered by sample id so that networks can be compared row by row."""

    logits: Tensor
    """[N, K] float32."""
    labels: Tensor
    """[N] int64, ``UNLABELED`` where there is none."""
    ids: Tensor
    """[N] int64."""

    @property
    def classes(self) -> Tensor:
        """[N] int64, the predicted classes."""
        return self.logits.argmax(1)

    def accuracy(self) -> float | None:
        """Top-1 over the labeled samples, in [0, 1]; None where no sample has a label."""
        labeled = self.labels != UNLABELED
        if not labeled.any():
            return None
        return (self.classes[labeled] == self.labels[labeled]).float().mean().item()

    def agreement(self, other: Predictions) -> float:
        """Share of the samples on which both predict the same class."""
        if not torch.equal(self.ids, other.ids):
            raise ValueError("predictions of different samples cannot be compared")
        return (self.classes == other.classes).float().mean().item()


@torch.inference_mode()
def predict(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable, spec: InputSpec, device: torch.device | str = "cpu"
) -> Predictions:
    """Run ``logits_of`` ([B, 3, H, W] → [B, K]) over the evaluation views of the batches.

    Under ``torch.distributed`` every rank brings its share of the split and all of them get the whole.
    """
    logits, labels, ids = [], [], []
    with parametrize.cached():  # a changed weight is evaluated once, not once per batch
        for batch in batches:
            view = eval_view(batch.images.to(device, non_blocking=True), spec)
            logits.append(logits_of(view.contiguous(memory_format=torch.channels_last)).float())
            labels.append(batch.labels)
            ids.append(batch.ids)
    parts = (torch.cat(logits).cpu(), torch.cat(labels).cpu(), torch.cat(ids))
    if dist.is_available() and dist.is_initialized():
        of_ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, parts)
        parts = tuple(torch.cat(column) for column in zip(*of_ranks))  # type: ignore[assignment]
    order = parts[2].argsort()
    return Predictions(*(part[order] for part in parts))
