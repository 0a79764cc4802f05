"""Reproduces the views of any past step. Views are not stored: they are a function of config, sample id and epoch.

The config is in the run folder::

    epoch, ids = distill.ids_of_step("runs/quickstart", 120)
    views = distill.replay("runs/quickstart", ids, epoch)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from augment.base import absolute
from augment.dual import DualAugment
from augment.views import InputSpec, Views
from distill.config import read_run
from distill.data.experiment_data import ExperimentData
from distill.data.reader import Batch
from distill.experiments.distillation import DistillationExperiment, as_distillation
from distill.models.network import create_network
from distill.run.folder import RunError
from distill.run.preview import ViewBatch
from distill.run.teacher_network import make_network
from distill.training.device import device_for
from distill.training.placement import read_placement


def replay(run: Path | str, ids: Sequence[str | int], epoch: int, device: torch.device | str | None = None) -> Views:
    """The views of some samples in an epoch of the student's training.

    They are bit-equal to those of a step if ``ids`` are all samples of the step in its order (:func:`ids_of_step`).
    With fewer samples they are equal up to rounding, which depends on the shape of the batch. With ``augment.mix``,
    whose partners come from the batch of a rank, all samples of that batch are required.

    Args:
        run: a run folder, finished or not.
        ids: names of the samples in the source, or their int64 keys in a batch; with mixing, the order matters.
        epoch: counted from 0.
        device: where to make the views; None: the kind of device that the run uses.

    Returns:
        Normalized views, [B, 3, H, W] each.

    Raises:
        RunError: the folder is not a run.
        DataError: an id is not among the training samples, or its image cannot be read.
    """
    run = absolute(run)
    experiment = as_distillation(read_run(run)[0], str(run))
    batch, augment = data_of(experiment).batch_of_ids(ids, epoch), augment_of(experiment)
    if read_placement(augment, run / "student") == "loader":
        batch = batch._replace(view_pixels=augment.render(batch.images, batch.ids, epoch))
    return ViewBatch.of(augment, batch, epoch, device or device_for(experiment.training)).views


def ids_of_step(run: Path | str, step: int, rank: int = 0, part: int = 0) -> tuple[int, list[int]]:
    """Epoch and sample ids of a batch of an update in the student's training, for one rank.

    Args:
        run: a run folder, finished or not.
        step: counted from 0 over all epochs.
        rank: index of one of the ``training.devices`` processes.
        part: which of the ``training.accumulate`` batches of the update.

    Returns:
        Epoch, counted from 0, and int64 ids in the batch's order.

    Raises:
        RunError: the run's training has no such step, rank or part.
    """
    experiment = as_distillation(read_run(absolute(run))[0], str(run))
    epoch, batch = batch_of_step(experiment, step, rank, part)
    return epoch, batch.ids.tolist()


def batch_of_step(experiment: DistillationExperiment, step: int, rank: int = 0, part: int = 0) -> tuple[int, Batch]:
    """Epoch and batch of an update.

    Args:
        experiment: the config of the run.
        step: counted from 0 over all epochs.
        rank: index of one of the ``training.devices`` processes.
        part: which of the ``training.accumulate`` batches of the update.

    Returns:
        Epoch, counted from 0, and the batch of the loader.

    Raises:
        RunError: the training has no such step, rank or part.
    """
    devices = experiment.training.devices
    if not 0 <= rank < devices:
        raise RunError(f"there is no rank {rank}: training.devices is {devices}")
    data = data_of(experiment, rank)
    epoch, numbers = numbers_of_step(experiment, data, step)
    if not 0 <= part < len(numbers):
        raise RunError(f"there is no part {part}: step {step} has {len(numbers)} batch(es)")
    return epoch, data.train_batch(epoch, numbers[part])


def numbers_of_step(experiment: DistillationExperiment, data: ExperimentData, step: int) -> tuple[int, range]:
    """Which batches an update averages the gradients of.

    Args:
        experiment: the config of the run.
        data: of the experiment.
        step: counted from 0 over all epochs.

    Returns:
        Epoch, counted from 0, and the numbers of the batches in it.

    Raises:
        RunError: the training has no such step.
    """
    batches, training = len(data.train_loader()), experiment.training
    per_epoch = training.updates(batches)
    epoch, number = divmod(step, per_epoch)
    if not 0 <= epoch < training.epochs:
        raise RunError(f"there is no step {step}: {training.epochs} epochs have {per_epoch} steps each")
    first = number * training.accumulate
    return epoch, range(first, min(first + training.accumulate, batches))


def data_of(experiment: DistillationExperiment, rank: int = 0) -> ExperimentData:
    """The experiment's data for a rank."""
    return ExperimentData(experiment.data, experiment.seed, experiment.training.devices, rank)


def augment_of(experiment: DistillationExperiment) -> DualAugment:
    """The augmentation of the student's training."""
    return DualAugment(experiment.augment, *inputs_of(experiment), experiment.seed)


def inputs_of(experiment: DistillationExperiment) -> tuple[list[InputSpec], InputSpec]:
    """The input sizes and normalizations of the teacher's networks, the momentum network's last, and of the student."""
    student = create_network(experiment.student.network).input
    if experiment.teacher is None:
        return [], student
    teachers = [make_network(network).input for network in experiment.teacher.frozen]
    return teachers + [student] * (experiment.teacher.momentum is not None), student
