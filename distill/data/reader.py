"""Reads a batch in a loader worker: decodes the samples, puts each on the canvas, stacks them.

A worker raises no exception. It returns errors as text, so that the run ends with the name of the sample instead of a
traceback from another process.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from augment.base import UserError
from augment.draws import copy_key, sample_key
from augment.loader import LoaderOps
from augment.views import ViewPixels
from distill.data.base import DataError, Sample
from distill.data.canvas import Canvas
from distill.data.order import Order, Repeats
from distill.data.replay import Replay, ReplayOrder
from distill.data.samplers import BatchRequest
from distill.data.split import Subset

if TYPE_CHECKING:  # the evaluation's workers need no operations
    from augment.placement import LoaderViews


class Batch(NamedTuple):
    """A batch, as the training step gets it."""

    images: Tensor
    """[B, C, H, W], uint8, or uint16 with white at 65535; contiguous, on the reader's device; [B, C, 0, 0] if workers
    make the views."""
    labels: Tensor
    """int64 [B], ``UNLABELED`` where a sample has none; on the same device."""
    ids: Tensor
    """int64 [B] on the CPU, :func:`augment.draws.sample_key` of the samples' names; of a sample that came before in the
    epoch, :func:`augment.draws.copy_key` of it."""
    view_pixels: ViewPixels | None = None
    """Pixels of the views, if workers make them; see :mod:`augment.placement`."""
    is_memory: Tensor | None = None
    """bool [B], which samples are of a memory; None: there is no memory."""
    view_keys: Tensor | None = None
    """int64 [B] on the CPU: the stored views of samples, see :meth:`augment.dual.DualAugment.forward`."""
    stored_logits: Tensor | None = None
    """float32 [B, K], on the stored views; NaN in other rows. None: the memory has none."""
    domains: Tensor | None = None
    """int64 [B] on the CPU: 0 for a sample of the source domain, 1 for one of the target. None: there is no target."""

    @property
    def pixels(self) -> Tensor | ViewPixels:
        """The pixels of the views if workers have made them, else the images."""
        return self.images if self.view_pixels is None else self.view_pixels


class BatchResult(NamedTuple):
    """The result of a request: a batch, or the reason why there is none."""

    batch: Batch | None
    unreadable: tuple[tuple[str, str], ...] = ()
    """(id, reason) of samples that were skipped."""
    error: str = ""
    """Text of an error; empty if there is none."""


class BatchReader(Dataset[BatchResult]):
    """``reader[request]`` reads the batch of a request, in a worker, or in the main process without workers.

    Args:
        subset: the samples.
        order: their order in an epoch.
        canvas: that images are fitted to.
        ops: loader-side augmentation, or None.
        tolerated: largest number of unreadable samples that a batch may replace; 0: the first is an error.
        workers: number of worker processes.
    """

    def __init__(
        self, subset: Subset, order: Order, canvas: Canvas, ops: LoaderOps | None, tolerated: int, workers: int
    ):
        self.subset, self.order, self.canvas, self.ops = subset, order, canvas, ops
        self.tolerated = tolerated
        self.device = torch.device("cpu")
        """Device of the batches; ids stay on the CPU."""
        self.views: LoaderViews | None = None
        """Makes the views in the worker; set before the first pass."""
        self.replay: Replay | None = None
        """The memory among the samples, if there is one."""
        self.first_target: int | None = None
        """Index in the split of the first sample of the target domain, which comes last; None: there is no target."""
        self.reading = torch.full((max(workers, 1),), -1, dtype=torch.int64).share_memory_()
        """[workers] index of the sample that each worker is reading, -1 between batches; named if a worker dies."""

    @property
    def repeats(self) -> Repeats:
        """The samples that come again in an epoch."""
        return Repeats(self.order, self.subset.keys)

    def domains_of(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int64 [B]: the domains of samples, by their indices in the subset."""
        return (self.subset.indices[indices] >= self.first_target).astype(np.int64)

    def prepare(self) -> str:
        """Do the work that the first batch would wait for; returns a line about it for the console, or nothing."""
        return ""

    def __getitem__(self, request: BatchRequest) -> BatchResult:
        worker = get_worker_info()
        slot = worker.id if worker else 0
        images = np.empty((len(request.positions), self.canvas.channels, *self.canvas.size), dtype=self.canvas.dtype)
        labels = np.empty(len(request.positions), dtype=np.int64)
        keys = np.empty(len(request.positions), dtype=np.int64)
        indices: list[int] = []
        unreadable: dict[str, str] = {}
        copies = self.order.copies(request.epoch)
        for row, position in enumerate(request.positions):
            copy = int(copies[position])
            for index in self._candidates(request.epoch, position):
                self.reading[slot] = index
                try:
                    sample = self.subset[index]
                except DataError as error:
                    unreadable[self.subset.ids[index]] = str(error)
                    if len(unreadable) > self.tolerated:
                        return BatchResult(None, tuple(unreadable.items()))
                    continue
                except Exception:  # a bug in a source, not an unreadable file: never skipped
                    return BatchResult(None, error=f"{self.subset.ids[index]}: {traceback.format_exc()}")
                try:
                    images[row] = self._canvas(sample, request.epoch, copy).transpose(2, 0, 1)
                except Exception as error:
                    known = isinstance(error, UserError)
                    return BatchResult(None, error=str(error) if known else f"{sample.id}: {traceback.format_exc()}")
                labels[row], keys[row] = sample.label, copy_key(sample_key(sample.id), copy)
                indices.append(index)
                break
        batch = Batch(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(keys))
        if self.replay is not None:
            batch = self._noted(self.replay, batch, indices, request.positions)
        if self.first_target is not None:
            batch = batch._replace(domains=torch.from_numpy(self.domains_of(indices)))
        if self.views is not None:
            try:
                view_pixels = self.views(batch.images, batch.ids, request.epoch, batch.view_keys)
            except Exception as error:
                known = isinstance(error, UserError)
                reason = str(error) if known else traceback.format_exc()
                return BatchResult(None, error=f"making the views of a batch in the loader: {reason}")
            empty = batch.images.new_empty(*batch.images.shape[:2], 0, 0)
            batch = batch._replace(images=empty, view_pixels=view_pixels)
        self.reading[slot] = -1
        return BatchResult(batch, tuple(unreadable.items()))

    def _noted(self, replay: Replay, batch: Batch, indices: Sequence[int], positions: Sequence[int]) -> Batch:
        """The batch with what it says about samples of the memory."""
        order = self.order
        plain = False, False
        drawn = [order.drawn_at(at) if isinstance(order, ReplayOrder) else plain for at in positions]
        is_memory, keys, logits = replay.of_batch(self.subset.indices[indices].tolist(), drawn)
        ids = batch.ids
        if keys is not None:  # a stored view is that of the first copy
            ids = torch.from_numpy(self.subset.keys[indices]).where(keys >= 0, ids)
        return batch._replace(ids=ids, is_memory=is_memory, view_keys=keys, stored_logits=logits)

    def _candidates(self, epoch: int, position: int) -> Iterator[int]:
        """The sample at a position, then its replacements, half an epoch away so that a batch has no sample twice."""
        order, half = self.order(epoch), len(self.subset) // 2
        yield int(order[position])
        for step in range(len(order)):
            yield int(order[(position + half + step) % len(order)])

    def _canvas(self, sample: Sample, epoch: int, copy: int) -> np.ndarray:
        types = (np.dtype(np.uint8), self.canvas.dtype)
        if sample.image.dtype not in types or sample.image.ndim != 3 or sample.image.shape[2] != self.canvas.channels:
            shown = f"{sample.image.dtype} {list(sample.image.shape)}"
            expected = f"{self.canvas.dtype} [H, W, {self.canvas.channels}] (data.channels)"
            raise DataError(f"{sample.id}: the source returned {shown}, expected {expected}")
        image = self.canvas(sample.image)
        return image if self.ops is None else self.ops(image, epoch, sample.id, copy)
