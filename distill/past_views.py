"""Reproduces the views of any past step. No view is stored: the config with its seed determines them.

A view is a function of the config, the sample's id and the epoch, so a run folder is enough::

    epoch, ids = distill.ids_of_step("runs/quickstart", 120)
    views = distill.replay("runs/quickstart", ids, epoch)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from augment.dual import DualAugment
from augment.views import InputSpec, Views
from distill.config import read_run
from distill.data.experiment_data import ExperimentData
from distill.data.reader import Batch
from distill.experiments.distillation import DistillationExperiment, as_distillation
from distill.models.network import create_network
from distill.run.folder import RunError
from distill.run.preview import ViewBatch
from distill.training.fit import device_for
from distill.training.placement import read_placement


def replay(run: Path | str, ids: Sequence[str | int], epoch: int, device: torch.device | str | None = None) -> Views:
    """The views that the student's training made of some samples in an epoch.

    Bit-equal to what the step saw, given its samples in its order (:func:`ids_of_step`). A part of them gives the same
    views up to the rounding of sums in another batch shape; only ``augment.mix``, whose partners come from the batch,
    needs the whole batch of the step, and of one rank.

    Args:
        run: a run folder, finished or not.
        ids: the samples, by name as the source gives it or as the int64 key of a batch; an order matters to mixing.
        epoch: counted from 0.
        device: where to make the views; default the kind of device that the run trains on.

    Returns:
        Normalized views, [B, 3, H, W] each.

    Raises:
        RunError: it is no run folder.
        DataError: an id is not among the training samples, or cannot be read any more.
    """
    experiment = as_distillation(read_run(Path(run))[0], str(run))
    batch, augment = data_of(experiment).batch_of_ids(ids, epoch), augment_of(experiment)
    if read_placement(augment, Path(run) / "student") == "loader":
        batch = batch._replace(view_pixels=augment.render(batch.images, batch.ids, epoch))
    return ViewBatch.of(augment, batch, epoch, device or device_for(experiment.training)).views


def ids_of_step(run: Path | str, step: int, rank: int = 0) -> tuple[int, list[int]]:
    """Epoch and sample ids of an update of the student's training, as that rank's step received them.

    Args:
        run: a run folder, finished or not.
        step: counted from 0 over all epochs.
        rank: of ``training.devices`` processes.

    Returns:
        Epoch, counted from 0, and int64 ids in the batch's order.

    Raises:
        RunError: the run's training has no such step or rank.
    """
    experiment = as_distillation(read_run(Path(run))[0], str(run))
    epoch, batch = batch_of_step(experiment, step, rank)
    return epoch, batch.ids.tolist()


def batch_of_step(experiment: DistillationExperiment, step: int, rank: int = 0) -> tuple[int, Batch]:
    """Epoch and batch of an update.

    Args:
        experiment: the config of the run.
        step: counted from 0 over all epochs.
        rank: of ``training.devices`` processes.

    Returns:
        Epoch, counted from 0, and the batch as the loader gives it.

    Raises:
        RunError: the training has no such step or rank.
    """
    devices = experiment.training.devices
    if not 0 <= rank < devices:
        raise RunError(f"there is no rank {rank}: training.devices is {devices}")
    data = data_of(experiment, rank)
    per_epoch = len(data.train_loader())
    epoch, number = divmod(step, per_epoch)
    if not 0 <= epoch < experiment.training.epochs:
        raise RunError(f"there is no step {step}: {experiment.training.epochs} epochs have {per_epoch} steps each")
    return epoch, data.train_batch(epoch, number)


def data_of(experiment: DistillationExperiment, rank: int = 0) -> ExperimentData:
    """The experiment's data as the process of a rank has it."""
    return ExperimentData(experiment.data, experiment.seed, experiment.training.devices, rank)


def augment_of(experiment: DistillationExperiment) -> DualAugment:
    """What makes the views in the student's training."""
    return DualAugment(experiment.augment, *inputs_of(experiment), experiment.seed)


def inputs_of(experiment: DistillationExperiment) -> tuple[list[InputSpec], InputSpec]:
    """What the teacher's networks and the student expect to see."""
    teachers = [create_network(n).input for n in experiment.teacher.networks] if experiment.teacher else []
    return teachers, create_network(experiment.student.network).input
