"""Decodes a split once and holds it on the device as uint8 (or uint16); a batch is a selection of rows.

For small images (CIFAR-100: 154 MB), loader workers and copies to the device take more time than the step of a small
network. The batches are bit-equal to those of :class:`distill.data.reader.BatchReader`: the same canvases, order,
labels, ids, and replacements of unreadable images. Resuming and the division among ranks do not change. Each rank holds
the whole split on its own device, since the order of an epoch covers all samples.
"""

from __future__ import annotations

import time
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from augment.base.machine import free_memory
from augment.draws import copy_key, sample_key
from distill.data.base import DataError, Samples
from distill.data.canvas import Canvas
from distill.data.loader import Loader
from distill.data.order import Order
from distill.data.reader import Batch, BatchReader, BatchResult
from distill.data.samplers import BatchRequest, SequentialSampler
from distill.data.settings import DataSettings
from distill.data.split import Subset

DECODED_TOGETHER = 256
"""Images in a batch of a worker that decodes."""


class Resident:
    """All images of one split of the source on one device; decoded at their first use.

    Args:
        samples: of the split.
        name: of the split, for errors.
        canvas: that images are fitted to.
        settings: of the workers that decode.
        device: for the images.
    """

    def __init__(self, samples: Samples, name: str, canvas: Canvas, settings: DataSettings, device: torch.device):
        self.samples, self.name, self.canvas, self.settings, self.device = samples, name, canvas, settings, device
        self.unreadable: dict[int, str] = {}
        """Index in the split → reason, for each image that could not be read."""
        self.seconds = 0.0
        """Duration of decoding."""

    @cached_property
    def images(self) -> Tensor:
        """uint8 or uint16 [N, C, H, W], in the order of the split.

        Raises:
            DataError: the device lacks memory (the text gives the bytes needed and free), a source raised an
                exception, or a worker died.
        """
        begun = time.perf_counter()
        count, (height, width), settings = len(self.samples), self.canvas.size, self.settings
        self._check_memory(self.canvas.channels * count * height * width * self.canvas.dtype.itemsize)
        everything = Subset(self.samples, np.arange(count), np.asarray(self.samples.labels, dtype=np.int64))
        order = Order(count, None)
        reader = BatchReader(everything, order, self.canvas, None, count - 1, settings.workers)
        loader = _Decoding(reader, SequentialSampler(count, DECODED_TOGETHER), **settings.processes)
        shape = count, self.canvas.channels, height, width
        images, filled = torch.empty(shape, dtype=getattr(torch, self.canvas.dtype.name), device=self.device), 0
        try:
            for batch in loader:
                images[filled : filled + len(batch.images)].copy_(batch.images, non_blocking=True)
                filled += len(batch.images)
        finally:
            loader.close()
        index_of = {id: index for index, id in enumerate(self.samples.ids)} if loader.unreadable else {}
        self.unreadable = {index_of[id]: reason for id, reason in loader.unreadable.items()}
        self.seconds = time.perf_counter() - begun
        return images

    @cached_property
    def keys(self) -> Tensor:
        """int64 keys [N] of the samples, on the CPU, where the draws are computed."""
        return torch.tensor([sample_key(id) for id in self.samples.ids], dtype=torch.int64)

    def __str__(self) -> str:
        count, (height, width) = len(self.samples), self.canvas.size
        what = f"{count:,} images of the {self.name} split at {height} × {width} pixels"
        return f"{what} are on {self.device}: {self.images.nbytes / 1e6:,.1f} MB, decoded in {self.seconds:.1f} s"

    def _check_memory(self, required: int) -> None:
        free = free_bytes(self.device)
        if free is not None and required > free:
            raise DataError(
                f"data.on_device: the {len(self.samples):,} images of the {self.name} split take {required:,} bytes at"
                f" {self.canvas.size[0]} × {self.canvas.size[1]} pixels, and {self.device} has {free:,} bytes free;"
                " use a smaller data.size, or on_device: false"
            )


class ResidentReader(BatchReader):
    """Reads the batches of :class:`BatchReader` from a split on the device, in the main process.

    The order is copied to the device once in an epoch; a batch copies nothing but its ids, for the draws.

    Args:
        subset: samples of the split that ``resident`` holds.
        order: their order in an epoch.
        resident: the images.
        tolerated: largest number of unreadable samples; others replace them, as in :class:`BatchReader`.
    """

    def __init__(self, subset: Subset, order: Order, resident: Resident, tolerated: int):
        super().__init__(subset, order, resident.canvas, None, tolerated, workers=0)
        self.resident, self.device = resident, resident.device
        self._epoch: tuple[int, Tensor, Tensor, Tensor, Tensor | None] | None = None
        self._chosen = np.empty(0, dtype=np.int64)  # index in the subset of the sample at each position of the epoch

    def prepare(self) -> str:
        known = "images" in vars(self.resident)
        summary = str(self.resident)
        return "" if known else summary

    def __getitem__(self, request: BatchRequest) -> BatchResult:
        images, unreadable = self.resident.images, self._unreadable
        reasons = tuple((self.subset.ids[index], reason) for index, reason in unreadable.items())
        if len(unreadable) > self.tolerated:
            return BatchResult(None, reasons)
        rows, labels, ids, domains = self._arranged(request.epoch)
        positions = request.positions
        at = slice(positions.start, positions.stop, positions.step) if isinstance(positions, range) else list(positions)
        batch = Batch(select_rows(images, rows[at]), labels[at], ids[at])
        if self.replay is not None:
            batch = self._noted(self.replay, batch, self._chosen[at].tolist(), positions)
        return BatchResult(batch if domains is None else batch._replace(domains=domains[at]), reasons)

    @cached_property
    def _unreadable(self) -> dict[int, str]:
        """Index in the subset → reason."""
        reasons = self.resident.unreadable
        return {index: reasons[row] for index, row in enumerate(self.subset.indices.tolist()) if row in reasons}

    def _arranged(self, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Rows of the images and labels on the device, ids and domains on the CPU, at each position; each [M]."""
        if self._epoch is None or self._epoch[0] != epoch:
            chosen = self.order(epoch)
            if self._unreadable:
                chosen = chosen.copy()
                for position in np.flatnonzero(np.isin(chosen, list(self._unreadable))).tolist():
                    chosen[position] = next(i for i in self._candidates(epoch, position) if i not in self._unreadable)
            rows, labels = torch.from_numpy(self.subset.indices[chosen]), torch.from_numpy(self.subset.labels[chosen])
            ids = copy_key(self.resident.keys[rows], torch.from_numpy(self.order.copies(epoch)))
            domains = None if self.first_target is None else torch.from_numpy(self.domains_of(chosen))
            if self.device.type == "cuda":  # as the loader does, so that copies of them are asynchronous
                ids, domains = ids.pin_memory(), None if domains is None else domains.pin_memory()
            self._epoch = epoch, rows.to(self.device), labels.to(self.device), ids, domains
            self._chosen = chosen
        return self._epoch[1:]


class _Decoding(Loader):
    """Records unreadable samples, and continues whatever their number."""

    def _accept(self, result: BatchResult) -> Batch:
        if result.error or result.batch is None:
            return super()._accept(result)
        self.unreadable |= result.unreadable
        return result.batch


def select_rows(images: Tensor, rows: Tensor) -> Tensor:
    """Some images; torch cannot select among uint16, but among int16 of the same bits."""
    if images.dtype == torch.uint16:
        return images.view(torch.int16).index_select(0, rows).view(torch.uint16)
    return images.index_select(0, rows)


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device, including torch's unused cache; None if the system does not tell."""
    if device.type != "cuda":
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
