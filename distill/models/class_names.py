"""Maps a teacher's classes to the student's, by name or by the config."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from augment.base import did_you_mean
from distill.models.label_map import LabelMap
from distill.models.network import Network
from distill.models.settings import Labels


def label_map(labels: Labels, network: Network, student: Sequence[str]) -> LabelMap | None:
    """Create the map for a network of the teacher.

    Args:
        labels: ``teacher.networks.N.labels``.
        network: one of the teacher's.
        student: names of the student's classes.

    Returns:
        The map; None for ``same``, where teacher and student have the same classes in the same order.

    Raises:
        ValueError: an unknown class, a network without class names, or no shared class.
    """
    if labels == "same":
        return None
    if not student:
        raise ValueError("the data has no classes that the teacher's could be mapped to")
    names = class_names(network)
    teacher_classes: int = network.model.num_classes  # type: ignore[assignment]
    if labels == "names":
        if names is None:
            raise ValueError(
                f"{network.origin} has no class names; map its {teacher_classes} classes by number:"
                " {student's class: the teacher's number}"
            )
        sources = _matched(names, student)
    else:
        indices = {name: index for index, name in enumerate(student)}
        sources = {}
        for student_class, given in labels.items():
            if student_class not in indices:
                raise ValueError(f"the data has no class {student_class!r}{did_you_mean(student_class, student)}")
            wanted = given if isinstance(given, tuple) else (given,)
            sources[indices[student_class]] = [
                _class_index(wanted_class, names, network.origin) for wanted_class in wanted
            ]
    return LabelMap(sources, len(student), teacher_classes)


def class_names(network: Network) -> list[frozenset[str]] | None:
    """The names of each of a network's classes, in lower case; None if they are unknown.

    They come from ``label_names`` of its config, or are ImageNet's: synset and every synonym.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    model = network.model
    given = model.pretrained_cfg.get("label_names")  # type: ignore[union-attr, operator]
    if given:
        return [frozenset({_folded(name)}) for name in given]
    subset = infer_imagenet_subset(model) if network.origin != "random" else None
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    pairs = zip(info.label_names(), info.label_descriptions(), strict=True)
    return [frozenset(map(_folded, [synset, *described.split(",")])) for synset, described in pairs]


def _matched(names: Sequence[frozenset[str]], student: Sequence[str]) -> dict[int, list[int]]:
    """Student class → the one teacher class of that name, or none."""
    indices: dict[str, list[int]] = defaultdict(list)
    for index, aliases in enumerate(names):
        for alias in aliases:
            indices[alias].append(index)
    matches = {student_class: indices.get(_folded(name), []) for student_class, name in enumerate(student)}
    for student_class, teacher_classes in matches.items():
        if len(teacher_classes) > 1:
            numbers = ", ".join(map(str, teacher_classes))
            raise ValueError(
                f"{student[student_class]!r} names several of the teacher's classes ({numbers}); give a number"
            )
    return matches


def _class_index(wanted: int | str, names: Sequence[frozenset[str]] | None, origin: str) -> int:
    """The index of a teacher class that is given by number or name."""
    if isinstance(wanted, int):
        return wanted
    if names is None:
        raise ValueError(f"{origin} has no class names, so {wanted!r} cannot be found; give its number")
    matches = [index for index, aliases in enumerate(names) if _folded(wanted) in aliases]
    if len(matches) > 1:
        raise ValueError(
            f"{origin} has several classes called {wanted!r}: {', '.join(map(str, matches))}; give a number"
        )
    if not matches:
        hint = did_you_mean(_folded(wanted), frozenset().union(*names))
        raise ValueError(f"{origin} has no class {wanted!r}{hint if 'did you mean' in hint else ''}")
    return matches[0]


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
