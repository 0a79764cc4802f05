"""From settings to loaders: which samples train, which validate, which test, and whose labels are shown."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from augment.draws import sample_key
from augment.loader import LoaderOps
from distill.data.base import UNLABELED, DataError, Samples, Source, Split
from distill.data.loader import Loader, TrainLoader
from distill.data.order import BatchRequest, Order, SequentialSampler
from distill.data.reader import Batch, BatchReader
from distill.data.resident import Resident, ResidentReader
from distill.data.settings import DataSettings
from distill.data.split import Part, held_out, label_budget, whole

__all__ = ["DataSettings", "ExperimentData"]

logger = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ExperimentData:
    """One experiment's data, as seen from one rank.

    Validation comes from the source, or else is held out from train by the hash of ids, stratified: the same samples
    whatever the seed. Test comes from the source or does not exist.

    Args:
        settings: see :class:`DataSettings`.
        seed: order of the training samples and loader-side augmentation; nothing else.
        world_size, rank: processes that share every batch.
        device: where ``on_device`` holds the images.

    Raises:
        DataError: what is wrong with the data, with the file, folder or sample.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
        device: torch.device | str = "cpu",
    ):
        if settings.batch_size % world_size:
            raise DataError(f"data.batch_size {settings.batch_size} cannot be shared out over {world_size} ranks")
        self.settings, self.seed, self.world_size, self.rank = settings, seed, world_size, rank
        self.device = torch.device(device)
        assert settings.source.component is not None
        self.source: Source = settings.source.component(settings.source)
        self._samples: dict[Split, Samples] = {}
        self._resident: dict[Split, Resident] = {}
        self._parts: dict[Split, Part] = {}
        self.part("train")

    @property
    def classes(self) -> Sequence[str]:
        """Class names; empty when the source has no labels."""
        return self.source.classes

    def part(self, name: Split) -> Part:
        """The samples of a split, with the labels that training may see."""
        if name not in self._parts:
            self._divide(name)
        return self._parts[name]

    def train_loader(self, labeled_only: bool = False) -> TrainLoader:
        """Shuffled, resumable batches of this rank; ``labeled_only`` leaves out the samples whose label is hidden."""
        part = self._labeled() if labeled_only else self.part("train")
        tolerated = int(self.settings.corrupt_budget * len(part))
        reader = self._reader(part, Order(len(part), self.seed), tolerated, training=True)
        batch, rank, world = self.settings.batch_size, self.rank, self.world_size
        if labeled_only:  # fewer labels than a batch are meant so, no reason to warn
            batch = min(batch, max(world, len(part) // world * world))
        return TrainLoader(reader, batch, rank=rank, world=world, **self._options(reader))

    def batch_at(self, epoch: int, number: int) -> Batch:
        """This rank's batch of an epoch, as the training step received it; ``number`` is counted from 0."""
        loader = self.train_loader()
        reader = self._decoder(self.part("train"), loader.sampler.order, loader.reader.tolerated, training=True)
        return _once(reader, loader.sampler.request(epoch, number))

    def batch_of(self, ids: Sequence[str | int], epoch: int) -> Batch:
        """Training samples as a step of ``epoch`` receives them, in the order of their names or int64 keys.

        Raises:
            DataError: an id is not among the training samples, or its image cannot be read.
        """
        part = self.part("train")
        names = {name: index for index, name in enumerate(part.ids)}
        keys = {sample_key(name): index for name, index in names.items()}
        places = []
        for id in ids:
            known: Mapping[Any, int] = names if isinstance(id, str) else keys
            if id not in known:
                raise DataError(f"no training sample has the id {id!r}; the first is {part.ids[0]!r}")
            places.append(known[id])
        reader = self._decoder(part, Order(len(part), None), tolerated=0, training=True)
        return _once(reader, BatchRequest(epoch, places))

    def canvases(self, name: Split, places: Sequence[int]) -> Batch:
        """Samples of a split by their places in it, as evaluation reads them, in one batch."""
        part = self.part(name)
        reader = self._decoder(part, Order(len(part), None), tolerated=0, training=False)
        return _once(reader, BatchRequest(0, places))

    def eval_loader(self, name: Split, shared: bool = True) -> Loader:
        """A split in order, each sample once, unreadable ones an error: this rank's share, or all of it."""
        return self._in_order(self.part(name), shared)

    def labeled_loader(self, shared: bool = False) -> Loader:
        """The training samples whose labels are shown, in order: what a probe is fitted to."""
        return self._in_order(self._labeled(), shared)

    def has(self, name: Split) -> bool:
        """Whether there are samples of this split."""
        if name == "val":
            self.part("train")  # holds out val
            return name in self._parts or name in self.source.has_split
        return name in self.source.has_split

    @property
    def labeled_count(self) -> int:
        """Training samples whose label is shown."""
        return int((self.part("train").labels != UNLABELED).sum())

    def with_all_labels(self) -> ExperimentData:
        """The same data, read and held once, without a label budget."""
        if self.settings.labels_per_class is None:
            return self
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"labels_per_class": None})
        other._parts = {}
        return other

    def fingerprint(self) -> str:
        """SHA-256 over the source's settings and every split's ids, labels and, where it knows them, file sizes.

        It names the data, not the protocol: held-out fraction, label budget and canvas do not change it.
        """
        digest = sha256(self.settings.source.model_dump_json().encode())
        for name in SPLITS:
            if name in self.source.has_split:
                samples = self._split(name)
                digest.update("\0".join([name, *self.classes, "", *samples.ids]).encode())
                digest.update(np.asarray(samples.labels, dtype="<i8").tobytes())
                digest.update(np.asarray(getattr(samples, "sizes", ()), dtype="<i8").tobytes())
        return digest.hexdigest()

    def _split(self, name: Split) -> Samples:
        if name not in self._samples:
            self._samples[name] = self.source.split(name)
        return self._samples[name]

    def _divide(self, name: Split) -> None:
        """Fill in ``_parts[name]``; train and a held-out val come together."""
        has = self.source.has_split
        if name in has and name != "train":
            self._parts[name] = whole(self._split(name), self.classes, name)
            return
        kind = self.settings.source.type
        if name == "test":
            raise DataError(f"the source {kind!r} has no test split, only {', '.join(sorted(has))}; declare one in it")
        train = whole(self._split("train"), self.classes, "train")
        if "val" not in has:
            mask = held_out(train.ids, train.labels, self.settings.val_fraction)
            if mask.any():
                self._parts["val"] = train.where(mask)
                train = train.where(~mask)
            elif name == "val":
                raise DataError(
                    f"the source {kind!r} has no val split, and data.val_fraction {self.settings.val_fraction:g}"
                    f" of {len(train)} training images holds out none"
                )
        if self.settings.labels_per_class is not None:
            if not self.classes:
                raise DataError(f"data.labels_per_class is set, but the source {kind!r} has no labels")
            budget = self.settings.labels_per_class, self.settings.label_seed
            train = Part(train.samples, train.indices, label_budget(train.ids, train.labels, *budget))
        self._parts["train"] = train

    def _labeled(self) -> Part:
        train = self.part("train")
        labeled = train.where(train.labels != UNLABELED)
        if not len(labeled):
            raise DataError(
                f"no training sample has a label (source {self.settings.source.type!r},"
                f" data.labels_per_class {self.settings.labels_per_class})"
            )
        return labeled

    def _in_order(self, part: Part, shared: bool) -> Loader:
        reader = self._reader(part, Order(len(part), None), tolerated=0, training=False)
        rank, world = (self.rank, self.world_size) if shared else (0, 1)
        batch = self.settings.batch_size // self.world_size
        return Loader(reader, SequentialSampler(len(part), batch, rank, world), **self._options(reader))

    def _reader(self, part: Part, order: Order, tolerated: int, training: bool) -> BatchReader:
        """What passes over a part read: files, or images on the device; ``training`` has the loader's operations."""
        if not self.settings.on_device:
            return self._decoder(part, order, tolerated, training)
        name = next(name for name, samples in self._samples.items() if samples is part.samples)
        if name not in self._resident:
            self._resident[name] = Resident(part.samples, name, self.settings, self.device)
        return ResidentReader(part, order, self._resident[name], tolerated)

    def _decoder(self, part: Part, order: Order, tolerated: int, training: bool) -> BatchReader:
        settings = self.settings
        ops = LoaderOps(settings.loader_ops, self.seed) if training and settings.loader_ops else None
        return BatchReader(part, order, settings.size, settings.fit, ops, tolerated, settings.workers)

    def _options(self, reader: BatchReader) -> dict[str, Any]:
        """Of a loader. What lies on the device needs no workers, and could not be handed to any."""
        return {"workers": 0} if isinstance(reader, ResidentReader) else self.settings.processes


def _once(reader: BatchReader, request: BatchRequest) -> Batch:
    """One batch, read here and now: no pass is started, and no split decoded for it."""
    return Loader(reader, SequentialSampler(len(reader.part), 1)).only(request)
