"""Makes loaders from settings: the samples of the splits, and the labels that are visible in training."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from augment.draws import copy_key, sample_key
from augment.loader import LoaderOps
from augment.views import InputSpec
from distill.data.balanced_order import BalancedOrder
from distill.data.base import UNLABELED, DataError, Samples, Source, Split, source_at
from distill.data.canvas import Canvas
from distill.data.domains import DomainOrder, TargetDomain
from distill.data.loader import Loader, TrainLoader
from distill.data.order import Order, PickedOrder
from distill.data.positions import Positions
from distill.data.reader import Batch, BatchReader
from distill.data.replay import JoinedSamples, MemorySamples, Replay, ReplayOrder
from distill.data.resident import Resident, ResidentReader
from distill.data.resident_memory import ResidentWithMemory, holds_memory
from distill.data.samplers import BatchRequest, SequentialSampler
from distill.data.settings import DataSettings
from distill.data.split import Subset, full_split, held_out, label_budget

__all__ = ["DataSettings", "ExperimentData"]

logger = logging.getLogger(__name__)
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ExperimentData:
    """The data of an experiment for one rank.

    If the source has no val split, samples of train are held out by the hash of their ids, stratified by class; they do
    not depend on the seed. The test split always comes from the source.

    Args:
        settings: see :class:`DataSettings`.
        seed: of the order of the training samples and of loader-side augmentation.
        world_size: number of processes among which each batch is divided.
        rank: index of this process.
        device: that holds the images with ``on_device``.
        source: of the images, if it is not the one that the settings name.

    Raises:
        DataError: the data cannot be used; the text names the file, folder or sample.
    """

    def __init__(
        self,
        settings: DataSettings,
        seed: int = 0,
        world_size: int = 1,
        rank: int = 0,
        device: torch.device | str = "cpu",
        source: Source | None = None,
    ):
        if settings.batch_size % world_size:
            raise DataError(
                f"data.batch_size {settings.batch_size} is not a multiple of the number of ranks, {world_size}"
            )
        self.settings, self.seed, self.world_size, self.rank = settings, seed, world_size, rank
        self.device = torch.device(device)
        self.source: Source = _open_source(settings.source) if source is None else source
        self._target_source = None
        if settings.target is not None:
            with source_at("data.target"):
                self._target_source = _open_source(settings.target)
        sources = [each for each in (self.source, self._target_source) if each is not None]
        depth = settings.depth or max(each.depth for each in sources)
        for each in sources:
            each.channels, each.depth = settings.channels, depth
        self._samples: dict[Split, Samples] = {}
        self._resident: dict[tuple[int, Canvas], Resident] = {}  # by the id of its samples
        self._with_memory: ResidentWithMemory | None = None  # of the training split of a task
        self._subsets: dict[Split, Subset] = {}
        self._part: tuple[str, ...] | None = None
        self._replay: Replay | None = None
        self._targets: dict[tuple[tuple[str, ...], bool], ExperimentData] = {}
        self._with_target: ExperimentData | None = None
        self.tolerant = False
        """Whether an unreadable training image is replaced, within ``corrupt_budget``, also where train is read in
        order and as for evaluation: nothing is evaluated on it."""
        self._sources: int | None = None  # number of source samples, if samples of the target come after them
        self.subset("train")
        if self._target_source is not None:
            target = self.target_domain()
            if target.has_split("test"):
                target.subset("test")

    @property
    def classes(self) -> Sequence[str]:
        """Class names; empty if the source has no labels."""
        return self.source.classes if self._part is None else self._part

    def part(self, classes: Sequence[str], subsets: Mapping[Split, Subset], seed: int) -> ExperimentData:
        """Some samples of these data, such as those of one task; no other sample can be read from it.

        Args:
            classes: names of its classes.
            subsets: the samples of each split that it has; their labels are indices into ``classes``.
            seed: of the order of the training samples and of loader-side augmentation.

        Returns:
            Data with the same settings; images on the device are not copied.
        """
        other = copy.copy(self)
        other._part, other._subsets, other.seed = tuple(classes), dict(subsets), seed
        other._with_memory = None
        return other

    def with_memory(self, memory: MemorySamples, replay: Replay) -> ExperimentData:
        """The same data with the images of a memory in every training batch.

        Args:
            memory: labels are indices into ``classes``.
            replay: ``replay.new`` is the number of the training samples of these data.

        Returns:
            Data whose training split is its own samples, then those of the memory.
        """
        other = copy.copy(self)
        old = Subset(memory, np.arange(len(memory)), np.asarray(memory.labels, dtype=np.int64))
        other._subsets = {**self._subsets, "train": JoinedSamples([self.subset("train"), old]).subset()}
        other._replay, other._with_memory = replay, None
        return other

    def target_domain(self, labeled: bool = False) -> ExperimentData:
        """The target domain alone: its training images without labels, and its test split, if it has one.

        Args:
            labeled: with all training labels, for a control that is named so.

        Raises:
            DataError: there is no ``data.target``, or it has a class that the source domain lacks.
        """
        if self._target_source is None:
            raise DataError("there is no target domain; set data.target")
        return self._target(self._target_source, tuple(self.classes), labeled)

    def as_target(self, classes: Sequence[str]) -> ExperimentData:
        """These data as the target domain of a model that was trained elsewhere.

        Args:
            classes: of the model, in the order of its logits; empty: they have no names.

        Returns:
            The training images without labels, and the test split, if there is one, with labels as ``classes``; without
            labels where classes have no names, since nothing says which is which.
        """
        return self._target(self.source, tuple(classes), labeled=False)

    def _target(self, source: Source, classes: tuple[str, ...], labeled: bool) -> ExperimentData:
        if (classes, labeled) not in self._targets:
            own: dict[str, Any] = {"source": source.settings, "target": None}
            own |= {"val_fraction": 0.0, "labels_per_class": None}
            if not labeled:
                own["sampler"] = "shuffled"
            key = "data.source" if source is self.source else "data.target"
            parts = self.seed, self.world_size, self.rank, self.device, TargetDomain(source, classes, labeled, key)
            made = ExperimentData(self.settings.model_copy(update=own), *parts)
            made.tolerant = not labeled
            self._targets[classes, labeled] = made
        return self._targets[classes, labeled]

    def with_target(self) -> ExperimentData:
        """The same data with unlabeled images of the target domain as half of each training batch.

        Validation and test splits stay those of the source domain. Batches say which samples are of which domain.
        """
        if self._with_target is None:
            other = copy.copy(self)
            parts = [self.subset("train"), self.target_domain().subset("train")]
            other._subsets = {**self._subsets, "train": JoinedSamples(parts).subset()}
            other._sources = len(parts[0])
            self._with_target = other
        return self._with_target

    def subset(self, name: Split) -> Subset:
        """The samples of a split, with the labels that are visible in training."""
        if name not in self._subsets:
            self._divide(name)
        return self._subsets[name]

    def column(self, name: Split, column: str) -> list[str]:
        """The values of a column of the source's table for the samples of a split. Raises ``DataError``."""
        subset = self.subset(name)
        own = name in self.source.has_split
        values = self.source.column(name if own else "train", column)  # a held-out val is a part of train
        return [values[index] for index in subset.indices]

    def train_loader(self, labeled_only: bool = False, shared: bool = True) -> TrainLoader:
        """Resumable batches in the order of ``data.sampler``.

        Args:
            labeled_only: of the samples with a visible label only.
            shared: only this rank's part of each batch.

        Returns:
            The loader.
        """
        subset = self._labeled() if labeled_only else self.subset("train")
        tolerated = self._budget(subset)
        order = self._order(subset)
        if order.batch < self.settings.batch_size and not labeled_only:  # fewer labels than a batch are normal
            logger.warning("only %d training samples: smaller batches than %d", len(subset), self.settings.batch_size)
        reader = self._reader(subset, order, tolerated, training=True)
        rank, world = (self.rank, self.world_size) if shared else (0, 1)
        return TrainLoader(reader, order.batch, rank=rank, world=world, **self._options(reader))

    def train_order(self) -> Order:
        """The order of the training samples in an epoch, in batches over all ranks."""
        return self._order(self.subset("train"))

    def _order(self, subset: Subset) -> Order:
        samples, world = len(subset), self.world_size
        if (replay := self._replay) is not None and subset is self.subset("train"):
            memory = samples - replay.new
            parts = self.settings.batch_size, replay.share, world, replay.current
            return ReplayOrder(replay.new, memory, self.seed, *parts)
        if (sources := self._sources) is not None and subset is self.subset("train"):
            own = subset.labels[:sources]
            balanced = self.settings.sampler == "balanced"
            order = BalancedOrder(own, self.seed) if balanced else Order(sources, self.seed)
            return DomainOrder(order, samples - sources, self.seed, self.settings.batch_size, world)
        if samples < world:
            raise DataError(f"{samples} training sample(s) for {world} ranks")
        batch = min(self.settings.batch_size, samples // world * world)
        if self.settings.sampler == "balanced":
            return BalancedOrder(subset.labels, self.seed, batch)
        return Order(samples, self.seed, batch)

    def train_batch(self, epoch: int, number: int, *, labeled_only: bool = False, images: int | None = None) -> Batch:
        """This rank's part of a training batch, as a step gets it.

        Args:
            epoch: counted from 0.
            number: of the batch in the epoch, counted from 0.
            labeled_only: a batch of the samples with a visible label.
            images: read only the first ones of the batch; None: all.

        Returns:
            The batch, on the CPU.
        """
        loader = self.train_loader(labeled_only)
        subset = self._labeled() if labeled_only else self.subset("train")
        reader = self._decoder(subset, loader.sampler.order, loader.reader.tolerated, training=True)
        request = loader.sampler.request(epoch, number)
        return _once(reader, request._replace(positions=request.positions[:images]))

    def batch_of_ids(self, ids: Sequence[str | int], epoch: int) -> Batch:
        """Training samples as a step of ``epoch`` gets them, in the order of ``ids``: names or int64 ids of a batch.

        The second time that a sample comes in an epoch, it has another id and augmentation, and its name is
        ``NAME#1``, then ``NAME#2``, and so on.

        Raises:
            DataError: an id is not among the training samples, or its image cannot be read.
        """
        subset = self.subset("train")
        positions, names = Positions(subset.ids), set(subset.ids)
        samples, copies = positions.locate(torch.tensor([_key_of(id, names) for id in ids], dtype=torch.int64))
        for id, sample in zip(ids, samples.tolist()):
            if sample < 0:
                raise DataError(f"no training sample has the id {id!r}; the first is {subset.ids[0]!r}")
        reader = self._decoder(subset, PickedOrder(samples.numpy(), copies.numpy()), tolerated=0, training=True)
        return _once(reader, BatchRequest(epoch, range(len(ids))))

    def eval_batch(self, name: Split, indices: Sequence[int], spec: InputSpec | None = None) -> Batch:
        """The samples of a split at some indices, read as for evaluation, in one batch.

        Args:
            name: of the split.
            indices: of the samples.
            spec: of the network that is evaluated; None: on the canvas of training.

        Returns:
            The batch.
        """
        subset = self.subset(name)
        tolerated = self._tolerated_in_order(subset)
        reader = self._decoder(subset, Order(len(subset), None), tolerated, training=False, spec=spec)
        return _once(reader, BatchRequest(0, indices))

    def eval_loader(self, name: Split, shared: bool = True, spec: InputSpec | None = None) -> Loader:
        """A split in order, each sample once; an unreadable sample is an error, unless the data is ``tolerant``.

        Args:
            name: of the split.
            shared: only this rank's part.
            spec: of the network that is evaluated, whose input images are read as; None: on the canvas of training.

        Returns:
            The loader.
        """
        return self._in_order(self.subset(name), shared, spec)

    def labeled_loader(self, shared: bool = False, spec: InputSpec | None = None) -> Loader:
        """The training samples with a visible label, in order; ``shared`` and ``spec`` as for :meth:`eval_loader`."""
        return self._in_order(self._labeled(), shared, spec)

    def canvas(self, spec: InputSpec | None = None) -> Canvas:
        """The canvas of training, or that of the evaluation of a network."""
        if spec is None:
            return Canvas.of_training(self.settings.size, self.settings.fit, self.settings.channels, self.source.depth)
        return Canvas.of_input(spec.size, spec.mean, self.settings.fit, self.source.depth)

    def has_split(self, name: Split) -> bool:
        """Whether the split has samples."""
        if self._part is not None:
            return name in self._subsets
        if name == "val":
            self.subset("train")  # holds out val
            return name in self._subsets or name in self.source.has_split
        return name in self.source.has_split

    @property
    def labeled_count(self) -> int:
        """Number of training samples with a visible label."""
        return int((self.subset("train").labels != UNLABELED).sum())

    def with_all_labels(self) -> ExperimentData:
        """The same data with all labels visible, but those of a target; images on the device are not copied."""
        if self.settings.labels_per_class is None:
            return self
        if self._part is not None:
            raise DataError("a part of the data has the labels that are visible in the whole")
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"labels_per_class": None})
        other._subsets, other._with_target = {}, None
        return other

    def fingerprint(self, *splits: Split) -> str:
        """SHA-256 over the source's settings and each split's ids, labels and, if the source knows them, file sizes.

        It does not depend on the held-out fraction, label budget and canvas. Of a target domain that training images
        come from too (:meth:`with_target`) it has the training split alone, so no label.

        Args:
            splits: to read; none: all.
        """
        digest = sha256(self.settings.source.model_dump_json().encode())
        for name in splits or SPLITS:
            if self._part is not None and name in self._subsets:
                subset = self._subsets[name]
                digest.update("\0".join([name, *self.classes, "", *subset.ids]).encode())
                digest.update(subset.labels.astype("<i8").tobytes())
                digest.update(getattr(subset.samples, "settings", "").encode())
                if len(sizes := np.asarray(getattr(subset.samples, "sizes", ()), dtype="<i8")):
                    digest.update(sizes[subset.indices].tobytes())
            elif self._part is None and name in self.source.has_split:
                samples = self._split(name)
                digest.update("\0".join([name, *self.classes, "", *samples.ids]).encode())
                digest.update(np.asarray(samples.labels, dtype="<i8").tobytes())
                digest.update(np.asarray(getattr(samples, "sizes", ()), dtype="<i8").tobytes())
        if self._sources is not None:
            digest.update(self.target_domain().fingerprint("train").encode())
        return digest.hexdigest()

    def _split(self, name: Split) -> Samples:
        if name not in self._samples:
            self._samples[name] = self.source.split(name)
        return self._samples[name]

    def _divide(self, name: Split) -> None:
        """Fill in ``_subsets[name]``; train and a held-out val are made together."""
        if self._part is not None:
            raise DataError(f"this part of the data has no {name} samples")
        splits = self.source.has_split
        if name in splits and name != "train":
            self._subsets[name] = full_split(self._split(name), self.classes, name)
            return
        kind = self.settings.source.type
        if name == "test":
            can_divide = "test_fraction" in type(self.settings.source).model_fields
            hint = "add a test folder, or set data.source.test_fraction" if can_divide else "declare one in it"
            raise DataError(f"the source {kind!r} has no test split, only {', '.join(sorted(splits))}; {hint}")
        train = full_split(self._split("train"), self.classes, "train")
        if "val" not in splits:
            mask = held_out(train.ids, train.labels, self.settings.val_fraction)
            if mask.any():
                self._subsets["val"] = train.where(mask)
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
            train = Subset(train.samples, train.indices, label_budget(train.ids, train.labels, *budget))
        self._subsets["train"] = train

    def _labeled(self) -> Subset:
        train = self.subset("train")
        labeled = train.where(train.labels != UNLABELED)
        if not len(labeled):
            raise DataError(
                f"no training sample has a label (source {self.settings.source.type!r},"
                f" data.labels_per_class {self.settings.labels_per_class})"
            )
        return labeled

    def _in_order(self, subset: Subset, shared: bool, spec: InputSpec | None) -> Loader:
        tolerated = self._tolerated_in_order(subset)
        reader = self._reader(subset, Order(len(subset), None), tolerated, training=False, spec=spec)
        rank, world = (self.rank, self.world_size) if shared else (0, 1)
        batch = self.settings.batch_size // self.world_size
        return Loader(reader, SequentialSampler(len(subset), batch, rank, world), **self._options(reader))

    def _budget(self, subset: Subset) -> int:
        """Number of training samples that may be unreadable."""
        return int(self.settings.corrupt_budget * len(subset))

    def _tolerated_in_order(self, subset: Subset) -> int:
        return self._budget(subset) if self.tolerant and subset is self.subset("train") else 0

    def _reader(
        self, subset: Subset, order: Order, tolerated: int, training: bool, spec: InputSpec | None = None
    ) -> BatchReader:
        """The reader of a subset, from files or from the device; ``training`` adds the loader's operations."""
        of_memory = holds_memory(subset)
        if not self.settings.on_device or (of_memory and not training):  # that is read once, after the task
            return self._decoder(subset, order, tolerated, training, spec)
        resident = self._resident_with_memory(subset) if of_memory else self._resident_of(subset, spec)
        reader = ResidentReader(subset, order, resident, tolerated)
        reader.replay = self._replay if training else None
        reader.first_target = self._sources if training else None
        return reader

    def _resident_of(self, subset: Subset, spec: InputSpec | None = None) -> Resident:
        key = id(subset.samples), self.canvas(spec)
        if key not in self._resident:
            self._resident[key] = Resident(subset.samples, self._name_of(subset), key[1], self.settings, self.device)
        return self._resident[key]

    def _resident_with_memory(self, subset: Subset) -> ResidentWithMemory:
        """The training images of a task and of its memory; they are dropped with the data of the task."""
        if self._with_memory is None or self._with_memory.samples is not subset.samples:
            assert isinstance(subset.samples, JoinedSamples | MemorySamples)
            about = self.canvas(), self.settings, self.device
            self._with_memory = ResidentWithMemory(subset.samples, self._resident_of, *about)
        return self._with_memory

    def _name_of(self, subset: Subset) -> str:
        """The source's split that a subset is of, for messages; else that of a part of the data."""
        known = [*self._samples.items(), *((name, own.samples) for name, own in self._subsets.items())]
        return next(name for name, samples in known if samples is subset.samples)

    def _decoder(
        self, subset: Subset, order: Order, tolerated: int, training: bool, spec: InputSpec | None = None
    ) -> BatchReader:
        settings = self.settings
        ops = LoaderOps(settings.loader_ops, self.seed) if training and settings.loader_ops else None
        reader = BatchReader(subset, order, self.canvas(spec), ops, tolerated, settings.workers)
        reader.replay = self._replay if training else None
        reader.first_target = self._sources if training else None
        return reader

    def _options(self, reader: BatchReader) -> dict[str, Any]:
        """A loader's worker options. Images on the device are read without workers."""
        return {"workers": 0} if isinstance(reader, ResidentReader) else self.settings.processes


def _open_source(settings: Source.Settings) -> Source:
    """The source that settings name."""
    assert settings.component is not None
    source: Source = settings.component(settings)  # type: ignore[assignment, arg-type]
    return source


def _key_of(id: str | int, names: set[str]) -> int:
    """The int64 id of a sample's name; ``NAME#2`` is the second repetition of ``NAME``."""
    if isinstance(id, int):
        return id
    name, _, copy = id.rpartition("#")
    return copy_key(sample_key(name), int(copy)) if id not in names and copy.isdecimal() else sample_key(id)


def _once(reader: BatchReader, request: BatchRequest) -> Batch:
    """One batch, read in this process; it starts no pass and does not decode a whole split."""
    return Loader(reader, SequentialSampler(len(reader.subset), 1)).only(request)
