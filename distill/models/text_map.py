"""Maps a teacher's classes to other classes by the similarity of their texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.models.soft_label_map import SoftLabelMap
from distill.text.classes import ClassText, class_texts, embed_classes
from distill.text.knowledge.timm import TimmKnowledge
from distill.text.names import is_synset
from distill.text.settings import TextSettings

if TYPE_CHECKING:
    from distill.models.label_settings import TextLabels


def text_map(
    labels: TextLabels,
    described: Sequence[tuple[str, str]] | None,
    origin: str,
    student: Sequence[str],
    store: Path | None,
) -> SoftLabelMap:
    """The map, with what is known about the classes of both sides.

    Args:
        labels: encoder, knowledge, method.
        described: name and description of each of the teacher's classes; None: they are unknown.
        origin: of the teacher, for errors.
        student: names of the student's classes.
        store: folder of text embeddings; None: none are kept.

    Returns:
        The map.

    Raises:
        ValueError: the teacher's classes have no names; or names, knowledge or the encoder cannot be used.
    """
    if described is None:
        raise ValueError(f"{origin} has no class names, so its classes have no texts; map them by number")
    teacher = teacher_texts(described, labels, origin, store)
    own = class_texts(student, labels, store, "the data")
    made = SoftLabelMap(
        embed_classes(teacher, labels, store, labels.teacher_texts),
        embed_classes(own, labels, store),
        temperature=labels.temperature,
        method=labels.method,
        top=labels.top,
        balance=labels.balance,
    )
    made.texts, made.teacher_texts = own, teacher
    return made


def teacher_texts(
    described: Sequence[tuple[str, str]], settings: TextSettings, origin: str, store: Path | None
) -> tuple[ClassText, ...]:
    """Texts of a teacher's classes: of those with a WordNet id by that, so that no sense has to be chosen.

    Args:
        described: name and description of each class.
        settings: knowledge about classes without an id.
        origin: of the teacher, for errors.
        store: folder of text embeddings; None: none are kept.

    Returns:
        One for each class.
    """
    if not all(is_synset(name) for name, _ in described):
        return class_texts([name for name, _ in described], settings, store, origin)
    synsets, texts = TimmKnowledge(TimmKnowledge.Settings()), []
    for key, description in described:
        sense = synsets.sense(key)
        names = description or (", ".join(sense.names) if sense else key)
        definitions = sense.definitions if sense else ()
        texts.append(ClassText(names.split(", ")[0], definitions, synsets.noun if sense else "", 1, key))
    return tuple(texts)
