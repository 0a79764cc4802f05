"""The student before a task as one of the teacher's networks: ``teacher.networks.N.model: previous``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from distill.continual.strategies.base import TaskFit
from distill.models.label_map import LabelMap, LabelMaps
from distill.models.network import Network
from distill.models.teacher_settings import TeacherSettings, WeightingSettings
from distill.run.stage import StageError
from distill.run.teacher import label_maps


def without_previous(settings: TeacherSettings) -> TeacherSettings | None:
    """The teacher of the first task: the networks other than the previous model; None if there is no other."""
    kept = tuple(network for network in settings.networks if not network.is_previous)
    if not kept:
        return None
    changed: dict[str, Any] = {"networks": kept}
    if sum(not network.is_momentum for network in kept) < 2:
        changed["weighting"] = WeightingSettings()
    return settings.model_copy(update=changed)


def with_previous(
    settings: TeacherSettings, given: Iterable[Network], fit: TaskFit, name: str, store: Path | None = None
) -> tuple[Sequence[Network], LabelMaps]:
    """The teacher's frozen networks in the order of the settings, and the maps of their classes.

    Args:
        settings: of the teacher.
        given: its networks other than the previous model, in their order.
        fit: the task, whose previous model is read from its files.
        name: of the stage, for errors.
        store: folder of text embeddings; None: none are kept.

    Returns:
        A network and a map for each entry of ``settings.frozen``.

    Raises:
        StageError: classes do not fit; the text names the network.
    """
    given = list(given)
    others = [own for own in settings.frozen if not own.is_previous]
    of_others = label_maps(settings.model_copy(update={"networks": tuple(others)}), given, fit.classes, store)
    networks: list[Network] = []
    maps: list[LabelMap | None] = []
    number = 0
    for own in settings.frozen:
        if own.is_previous:
            assert fit.previous is not None
            networks.append(fit.previous.newest.load())
            maps.append(_map_of_previous(fit, name))
        else:
            networks.append(given[number])
            maps.append(of_others[number])
            number += 1
    return networks, LabelMaps(maps)


def _map_of_previous(fit: TaskFit, name: str) -> LabelMap | None:
    assert fit.previous is not None
    known = fit.previous.newest.classes
    if known == fit.classes:
        return None
    sources = {index: [known.index(own)] for index, own in enumerate(fit.classes) if own in known}
    if not sources:
        raise StageError(
            f"{name}: teacher.networks: the previous model knows none of the task's classes, since the "
            "strategy trains a head for each task; use another strategy, or remove it"
        )
    return LabelMap(sources, len(fit.classes), len(known))
