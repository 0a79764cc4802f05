"""Predictions of a network for a split, each sample once, with any number of ranks."""

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
    """Outputs of a network for a split, on the CPU, ordered by sample id so that rows of two networks correspond."""

    logits: Tensor
    """[N, K] float32."""
    labels: Tensor
    """[N] int64, ``UNLABELED`` where a sample has none."""
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
        """Fraction of the samples for which both predict the same class, in [0, 1]."""
        if not torch.equal(self.ids, other.ids):
            raise ValueError("predictions of different samples cannot be compared")
        return (self.classes == other.classes).float().mean().item()


@torch.inference_mode()
def predict(
    logits_of: Callable[[Tensor], Tensor], batches: Iterable, spec: InputSpec, device: torch.device | str = "cpu"
) -> Predictions:
    """Run a network over the evaluation views of a split.

    Under ``torch.distributed`` each rank computes its part of the split, and all ranks get the outputs of all parts.

    Args:
        logits_of: normalized views [B, 3, H, W] → logits [B, K].
        batches: of the split: images uint8 [B, 3, H, W], labels [B], ids [B].
        spec: size and normalization of the views.
        device: where the views are made.

    Returns:
        One row for each sample of the split, on the CPU, ordered by id.
    """
    logits, labels, ids = [], [], []
    with parametrize.cached():  # weights with deltas are computed once, not for each batch
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
