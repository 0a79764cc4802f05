"""``distill cache``: compute the teacher's outputs for all epochs of a config's training and write them in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from augment.draws import copy_key
from augment.dual import DualAugment
from augment.placement import to_device
from distill.commands.runs import ready_teacher
from distill.data.samplers import BatchRequest, EpochSampler
from distill.experiments.distillation import DistillationExperiment
from distill.models.network import create_network
from distill.run.context import RunContext, open_context
from distill.run.fit_spec import open_cache
from distill.run.runner import check_stages, finish
from distill.run.teacher import make_teacher
from distill.run.trial import trying
from distill.stages.outputs import TeacherNetworks
from distill.training.teacher_cache import TeacherCache
from distill.yaml_tree import ConfigError


class MissingBatches:
    """The requests of all epochs and ranks whose rows are not all in the cache, searched as they are iterated over.

    Args:
        cache: the teacher's cache.
        ranks: every rank's batches.
        keys: int64 [N], ids of the training samples.
        epochs: how many epochs the cache holds.
    """

    def __init__(self, cache: TeacherCache, ranks: list[EpochSampler], keys: np.ndarray, epochs: int):
        self.cache, self.ranks, self.epochs = cache, ranks, epochs
        self.epoch_of: deque[int] = deque()
        """The epochs of the requests that were handed out; the owner removes one with each batch."""
        self.passed = 0
        """Batches that are in the cache or were handed out."""
        self._keys = keys

    def __len__(self) -> int:
        return self.epochs * sum(map(len, self.ranks))

    def __iter__(self) -> Iterator[BatchRequest]:
        for epoch in range(self.epochs):
            for number in range(len(self.ranks[0])):
                for rank in self.ranks:
                    request = rank.request(epoch, number)
                    at = list(request.positions)
                    keys = copy_key(self._keys[rank.order(epoch)[at]], rank.order.copies(epoch)[at])
                    self.passed += 1
                    if not self.cache.find(torch.from_numpy(keys), epoch).complete:
                        self.epoch_of.append(epoch)
                        yield request


def make_teacher_networks(experiment: DistillationExperiment, context: RunContext) -> TeacherNetworks:
    """The teacher's networks, fitted first if the config has ``fit_teacher`` and they are not fitted yet."""
    outputs = [finish(stage, context, context.root) for stage in experiment.plan_teacher()]
    return TeacherNetworks(tuple(network for output in outputs for network in output.networks))


def fill_cache(experiment: DistillationExperiment, console: Console) -> TeacherCache:
    """Run the teacher on the batches that the cache lacks, and add its outputs. Fits the teacher first if necessary.

    Raises:
        ConfigError: the config has no ``teacher.cache``, or ``teacher.cache.write`` is off.
        CacheError: the disk is full, or the folder holds a cache of other data or another teacher.
        Interrupted: a signal arrived; written rows are kept, and another call continues from there.
    """
    settings = experiment.teacher
    if settings is None or settings.cache is None or not settings.cache.write:
        raise ConfigError("nothing to write: the config needs a teacher with teacher.cache, and its key write on")
    with open_context(experiment, console) as context:
        # Fitting with several devices would start this command in each of their processes.
        alone = experiment.training.devices == 1
        if alone:
            check_stages(experiment.plan_teacher(), context)
        networks = (make_teacher_networks if alone else ready_teacher)(experiment, context).networks
        teacher = make_teacher(settings, experiment.objectives, networks).to(context.device)
        student = create_network(experiment.student.network).input
        with trying("making the teacher's views"):
            dual = DualAugment(experiment.augment, teacher.inputs, student, experiment.seed).to(context.device)
            batch = context.data.train_batch(0, 0, images=8)
            dual.diagnose(batch.images.to(context.device), batch.ids, 0)
        whole = context.data.train_loader()
        cache = open_cache(context, teacher, dual, experiment.training.epochs, settings.cache, whole.reader.repeats)
        assert cache is not None
        console.print(cache.describe(), highlight=False, soft_wrap=True)

        order, size, world = whole.sampler.order, whole.sampler.batch, context.data.world_size
        ranks = [EpochSampler(order, size, rank, world) for rank in range(world)]
        missing = MissingBatches(cache, ranks, whole.reader.subset.keys, experiment.training.epochs)
        loader = whole.beside(whole.reader, missing)
        columns = TextColumn("teacher cache"), BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("batches")
        written = 0
        try:
            with Progress(*columns, TimeRemainingColumn(), console=console, expand=True) as progress:
                task = progress.add_task("", total=len(missing))
                for loaded in loader:
                    context.stop.raise_if_received()
                    epoch = missing.epoch_of.popleft()
                    stored = cache.find(loaded.ids, epoch)
                    views = dual(to_device(loaded.pixels, context.device), loaded.ids, epoch, student=False)
                    cache.keep(stored, teacher(views.teacher))
                    if cache.failure is not None:
                        raise cache.failure
                    written += int((~stored.there).sum())
                    progress.update(task, completed=missing.passed - len(missing.epoch_of))
                progress.update(task, completed=len(missing))
        finally:
            cache.flush()
            loader.close()
    console.print(f"wrote {written:,} rows; the cache is complete", highlight=False)
    return cache
