"""A prior that the tasks of a bank meta-learn: the deltas that a new task starts from, for tasks of few images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from distill.continual.strategies.base import TaskFit
from distill.continual.strategies.sequential import FIT
from distill.deltas.sites import classifier_names, inside
from distill.models.student import Student
from distill.training.checkpoints import VerifiedCheckpointIO
from distill.training.fit import RESULT
from distill.training.reptile import reptile

PRIOR = "prior.ckpt"


def write_prior(fit: TaskFit, student: Student) -> None:
    """Write the prior after a task, from its trained deltas and the prior before it.

    Each task is seen once, so the step of :func:`distill.training.reptile.reptile` is 1/t in the t-th: the prior is the
    mean of the trained deltas of all tasks so far.

    Args:
        fit: of the task, whose training is finished.
        student: of the task, which tells what belongs to the head, of which there is no prior.
    """
    head = classifier_names(student.model)
    trained: dict[str, Tensor] = VerifiedCheckpointIO().load_checkpoint(fit.folder / FIT / RESULT)["student"]
    trained = {name: value for name, value in trained.items() if not inside(name.removeprefix("model."), head)}
    before = _with_prior(fit)
    prior = read_prior(before[-1]) if before else {}
    content = {"prior": reptile(prior, trained, 1 / (len(before) + 1)) if prior else trained}
    VerifiedCheckpointIO().save_checkpoint(content, fit.folder / PRIOR)


def read_prior(folder: Path) -> dict[str, Tensor]:
    """The prior after the task of a folder, by the names of ``Student.own_state``."""
    prior: dict[str, Tensor] = VerifiedCheckpointIO().load_checkpoint(folder / PRIOR)["prior"]
    return prior


def start_from_prior(fit: TaskFit) -> tuple[Path | None, dict[str, Tensor]]:
    """What a task starts from.

    Args:
        fit: of the task.

    Returns:
        Folder of the fit whose ranks and masks it takes over, so that all tasks have deltas of the same shapes, and
        the prior; None and nothing if no task wrote one.
    """
    before = _with_prior(fit)
    return (before[0] / FIT, read_prior(before[-1])) if before else (None, {})


def _with_prior(fit: TaskFit) -> list[Path]:
    """Folders of the earlier tasks that a prior is the mean of."""
    return [folder for folder in fit.earlier if (folder / PRIOR).is_file()]
