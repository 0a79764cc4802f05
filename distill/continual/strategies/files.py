"""Networks of a stream in files: delta folders over one backbone, and whole networks."""

from __future__ import annotations

from pathlib import Path

from distill.continual.learned import LearnedNetwork, folder_bytes
from distill.continual.strategies.base import TaskFit
from distill.export.delta.io import load_delta, save_delta
from distill.export.manifest import Preprocessing
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.models.student import Student

DELTA, MERGED = "delta", "merged"


def write_part(fit: TaskFit, student: Student, *, merged: bool = False) -> None:
    """Write a trained student: its delta file, or the whole network if it was trained in full.

    Args:
        fit: gives the folder and the names of the classes.
        student: with its deltas in their exported form.
        merged: write the whole network with merged deltas instead of a delta file.
    """
    if merged or student.full:
        origin, preprocessing = student.network.origin, Preprocessing.of(student.model, student.input.size)
        folder = fit.folder / MERGED
        write_timm_folder(folder, student.model, origin=origin, labels=fit.classes, preprocessing=preprocessing)
        return
    write_delta(fit, student, fit.folder / DELTA)


def write_delta(fit: TaskFit, student: Student, folder: Path) -> None:
    """Write the delta file of a trained student.

    Args:
        fit: gives the names of the classes.
        student: with its deltas in their exported form.
        folder: of the delta file.
    """
    save_delta(
        folder,
        student.model,
        student.backbone,
        origin=student.network.origin,
        labels=fit.classes,
        preprocessing=Preprocessing.of(student.model, student.input.size),
        unchanged=len(fit.task.classes) == 1,  # cross-entropy with one class has no gradient
        stored=student.stored,
    )


def read_part(
    folder: Path, name: str, classes: tuple[str, ...], network: NetworkSettings, kept: int = 0
) -> LearnedNetwork:
    """A network that :func:`write_part` wrote.

    Args:
        folder: of the task's stage.
        name: of the part.
        classes: of its logits.
        network: the backbone of the delta file.
        kept: bytes of what is kept besides it.

    Returns:
        The part; it is read when it is loaded.
    """
    whole = folder / MERGED
    if whole.is_dir():

        def load() -> Network:
            return create_network(merged_network(network, whole))

        files = whole
    else:
        files = folder / DELTA

        def load() -> Network:
            made = create_network(network, len(classes))
            made.model = load_delta(files, made.model)
            return made

    size = folder_bytes(files)
    return LearnedNetwork(name, classes, load, size, size + kept, folder=files, network=network)


def merged_network(network: NetworkSettings, folder: Path) -> NetworkSettings:
    """Settings of the whole network in a folder, with the input of the one that it was trained from."""
    taken = {"model": f"local-dir:{folder}", "pretrained": True, "checkpoint": None, "prefix": None}
    return network.model_copy(update=taken)
