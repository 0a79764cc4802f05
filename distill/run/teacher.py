"""Builds the teacher of a fit from its networks, and maps its classes to the student's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.models.class_names import label_map
from distill.models.label_map import LabelMaps
from distill.models.label_settings import TextLabels
from distill.models.network import Network
from distill.models.teacher import DTYPES, Teacher
from distill.models.teacher_settings import TeacherSettings
from distill.objectives.base import Objective
from distill.run.context import RunContext
from distill.run.stage import StageError
from distill.text.classes import fingerprints
from distill.training.terms import needs_of


def make_teacher(
    settings: TeacherSettings,
    objectives: Sequence[Objective.Settings],
    networks: Sequence[Network],
    maps: LabelMaps | None = None,
) -> Teacher:
    """The teacher, with the outputs that the objectives read and the cache keeps.

    Args:
        settings: weights, dtype, cache.
        objectives: of the student's fit.
        networks: one for each of ``settings.frozen``.
        maps: of the networks' classes to the student's; None: the classes are the same.

    Returns:
        The frozen teacher, on the CPU.

    Raises:
        StageError: an objective gives the student the head of a teacher whose classes have another order.
    """
    heads = [objective.type for objective in objectives if _sets_head(objective)]
    if heads and maps is not None and any(maps[n] is not None for n in range(len(networks))):
        raise StageError(
            f"{', '.join(heads)} gives the student the teacher's head, whose classes have another order than the"
            " data's; sort the data's classes as the teacher's, or use another objective"
        )
    _, needs = needs_of(objectives)
    if settings.cache is not None:
        needs |= settings.cache.holds
    weights = [network.weight for network in settings.frozen]
    return Teacher(list(networks), weights, needs, DTYPES[settings.dtype], settings.compile, maps, settings.weighting)


def label_maps(
    settings: TeacherSettings, networks: Sequence[Network], classes: Sequence[str], store: Path | None = None
) -> LabelMaps:
    """Maps of the networks' classes to the student's.

    Args:
        settings: ``networks.N.labels`` defines which classes are the same.
        networks: one for each of ``settings.frozen``.
        classes: the names of the student's classes.
        store: folder of text embeddings, see :func:`text_store`; None: none are kept.

    Returns:
        A map for each network.

    Raises:
        StageError: ``labels`` does not fit the classes; the text names the network.
    """
    maps = []
    numbered = [(n, own) for n, own in enumerate(settings.networks) if not own.is_momentum]
    for (n, own), network in zip(numbered, networks, strict=True):
        try:
            maps.append(label_map(own.labels, network, classes, store))
        except ValueError as error:
            raise StageError(f"teacher.networks.{n}.labels: {error}") from error
    return LabelMaps(maps)


def _sets_head(settings: Objective.Settings) -> bool:
    method = settings.component
    assert method is not None and issubclass(method, Objective)
    return method.sets_head


def text_store(context: RunContext) -> Path:
    """The folder of text embeddings that all runs of an output folder share."""
    return context.root / "text"


def text_fingerprints(settings: TeacherSettings | None) -> list[list[str]]:
    """For each network with ``labels: {by: text}``, what changes when its map does; for the key of a stage."""
    networks = () if settings is None else settings.frozen
    return [fingerprints(own.labels) for own in networks if isinstance(own.labels, TextLabels)]
