"""Maps a teacher's classes to the student's, by name or by the config."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from augment.base import did_you_mean
from distill.data.labels import shortened
from distill.models.label_map import LabelMap
from distill.models.label_settings import Labels, TextLabels
from distill.models.network import Network
from distill.models.text_map import text_map

_NUMBER = re.compile(r"[-+]?\d+$")


def label_map(labels: Labels, network: Network, student: Sequence[str], store: Path | None = None) -> LabelMap | None:
    """Create the map for a network of the teacher.

    With ``same``, names rule where both sides have them: the same names in another order give a map, other names are an
    error. The names of ImageNet's classes, which a config may not give, are used if they show another order.

    Args:
        labels: ``teacher.networks.N.labels``.
        network: one of the teacher's.
        student: names of the student's classes; if all are numbers, they count as no names.
        store: folder of text embeddings, for ``by: text``; None: none are kept.

    Returns:
        The map; None where teacher and student have the same classes in the same order.

    Raises:
        ValueError: an unknown class, a network without class names, other names, or no shared class; the text shows the
            names of both.
    """
    teacher_classes: int = network.model.num_classes  # type: ignore[assignment]
    if labels == "numbers" or (labels == "same" and (not teacher_classes or len(student) != teacher_classes)):
        return None
    if not teacher_classes:
        raise ValueError(f"{network.origin} has no classifier, so it has no classes to map; leave labels out")
    if not student:
        raise ValueError("the data has no classes that the teacher's could be mapped to")
    if isinstance(labels, TextLabels):
        return text_map(labels, described_classes(network), network.origin, student, store)
    names = class_names(network)
    if labels == "same":
        return None if names is None else _reordered(names, student, network)
    if labels == "names":
        if names is None:
            raise ValueError(
                f"{network.origin} has no class names; map its {teacher_classes} classes by number:"
                " {student's class: the teacher's number}"
            )
        sources = _matched(names, student)
        if not any(sources.values()):
            raise ValueError(f"the teacher and the student share no class{_both(names, student, network)}")
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

    They are those of :func:`described_classes`, and every synonym in their descriptions.
    """
    pairs = described_classes(network)
    return None if pairs is None else [_aliases(name) | _aliases(described_as) for name, described_as in pairs]


def described_classes(network: Network) -> list[tuple[str, str]] | None:
    """The name of each of a network's classes, and its description, which may be empty; None if they are unknown.

    They are ``label_names`` and ``label_descriptions`` of its config, or ImageNet's: WordNet id, and synonyms.

    Raises:
        ValueError: ``label_names`` has another number of names than the classifier has classes.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    model = network.model
    declared = _declared(network)
    if declared is not None:
        described: Mapping[str, str] = model.pretrained_cfg.get("label_descriptions") or {}  # type: ignore[union-attr, operator]
        return [(name, described.get(name, "")) for name in declared]
    subset = infer_imagenet_subset(model) if network.origin != "random" else None
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return list(zip(info.label_names(), info.label_descriptions(), strict=True))


def _declared(network: Network) -> list[str] | None:
    """``label_names`` of the config, a list or a mapping of numbers to names; an unnamed class is an empty name."""
    given = network.model.pretrained_cfg.get("label_names")  # type: ignore[union-attr, operator]
    if not given:
        return None
    numbered = {int(number): str(name) for number, name in given.items()} if isinstance(given, Mapping) else None
    classes: int = network.model.num_classes  # type: ignore[assignment]
    if numbered is None:
        names = [str(name) for name in given]
        if len(names) != classes:
            raise ValueError(f"{network.origin}: label_names has {len(names)} names for {classes} classes")
        return names
    if not all(0 <= number < classes for number in numbered):
        raise ValueError(f"{network.origin}: label_names names class {max(numbered)}, and there are {classes}")
    return [numbered.get(number, "") for number in range(classes)]


def _reordered(names: Sequence[frozenset[str]], student: Sequence[str], network: Network) -> LabelMap | None:
    """The map between the same classes in two orders; None if the order is the same, or either side has no names."""
    if all(map(_NUMBER.match, student)) and not all(any(map(_NUMBER.match, aliases)) for aliases in names):
        return None
    declared = _declared(network)
    if declared is not None and list(student) != declared and sorted(student) == sorted(declared):
        # names that differ only in case (letters) are told apart
        return LabelMap({place: [declared.index(name)] for place, name in enumerate(student)}, len(student), len(names))
    candidates = _candidates(names, student)
    if all(place in indices for place, indices in enumerate(candidates)):
        return None
    missing = [name for name, indices in zip(student, candidates, strict=True) if not indices]
    moved = [name for place, name in enumerate(student) if candidates[place] and place not in candidates[place]]
    if declared is None and not moved:
        return None  # the guess that the classes are ImageNet's shows no other order
    if missing:
        raise ValueError(
            f"{network.origin} has as many classes as the data, but under other names; it lacks {shortened(missing)}"
            f"{_both(names, student, network)}\n"
            "  write labels: names to compare the classes that both have, {data's class: teacher's class} to map them,"
            " or labels: numbers if equal numbers are equal classes"
        )
    return LabelMap(_matched(names, student), len(student), len(names))


def _both(names: Sequence[frozenset[str]], student: Sequence[str], network: Network) -> str:
    """The classes of teacher and data, in two lines."""
    teacher = _declared(network) or [min(aliases, key=lambda alias: (len(alias), alias)) for aliases in names]
    return f"\n  teacher: {shortened(teacher)}\n  data: {shortened(student)}"


def _candidates(names: Sequence[frozenset[str]], student: Sequence[str]) -> list[list[int]]:
    """For each of the student's classes, the teacher's classes of its name.

    If there is none of the whole name, those of one of its parts between commas, as the names of ImageNet's classes are
    often written.
    """
    indices: dict[str, list[int]] = defaultdict(list)
    for index, aliases in enumerate(names):
        for alias in aliases:
            indices[alias].append(index)
    return [
        indices.get(_folded(name)) or sorted({index for part in _aliases(name) for index in indices.get(part, ())})
        for name in student
    ]


def _matched(names: Sequence[frozenset[str]], student: Sequence[str]) -> dict[int, list[int]]:
    """Student class → the one teacher class of that name, or none."""
    matches = dict(enumerate(_candidates(names, student)))
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


def _aliases(name: str) -> frozenset[str]:
    """A name and its parts between commas, in lower case."""
    return frozenset(map(_folded, [name, *name.split(",")])) - {""}


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
