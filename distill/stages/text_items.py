"""Items of the report about texts of classes: what is known about them, and how a teacher's classes are mapped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.models.soft_label_map import SoftLabelMap
from distill.models.teacher import Teacher
from distill.report.items import Column, Item, Table, TableRow
from distill.text.classes import ClassText, coverage

SHOWN = 20
"""Rows of the tables that would have one for each class."""


def coverage_items(texts: Sequence[ClassText]) -> Iterable[Item]:
    """How many classes there is knowledge about, and which sense of each name with several was chosen.

    Args:
        texts: of the classes.
    """
    rows = []
    for source, count in coverage(texts).items():
        own = [each for each in texts if each.source == source]
        several, parts = sum(each.senses > 1 for each in own), sum(bool(each.part) for each in own)
        name = source or "nothing: their texts are their names"
        rows.append(TableRow(cells=(name, float(count), float(several), float(parts))))
    yield Table(
        title="What is known about the classes",
        columns=(
            Column(heading="source"),
            Column(heading="classes", unit="count"),
            Column(heading="several senses", unit="count", rank=1),
            Column(heading="by last words", unit="count", rank=2),
        ),
        rows=tuple(rows),
        caption="By last words: what is known about the last words of the name is taken, lily of peruvian lily.",
    )
    chosen = [each for each in texts if each.senses > 1 and each.definitions]
    if chosen:
        yield Table(
            title="Senses that were chosen",
            columns=(
                Column(heading="class"),
                Column(heading="definition"),
                Column(heading="senses", unit="count", rank=1),
            ),
            rows=tuple(
                TableRow(cells=(each.spoken, shown(each.definitions[0]), float(each.senses))) for each in chosen[:SHOWN]
            ),
            caption=_rest(len(chosen)),
        )


def label_map_items(teacher: Teacher) -> Iterable[Item]:
    """The maps of the teacher's networks whose classes are mapped by text."""
    for n, origin in enumerate(teacher.origins):
        soft = teacher.maps[n]
        if not isinstance(soft, SoftLabelMap):
            continue
        yield from coverage_items(soft.texts)
        names = [each.spoken for each in soft.teacher_texts]
        rows = [
            TableRow(cells=(each.spoken, ", ".join(f"{name} {weight:.0%}" for name, weight in entries)))
            for each, entries in zip(soft.texts, soft.top_entries(names))
        ]
        yield Table(
            title=f"Classes of {origin} by text",
            columns=(Column(heading="class"), Column(heading="nearest classes of the teacher")),
            rows=tuple(rows[:SHOWN]),
            caption="The share of each teacher class that goes to the class. " + _rest(len(rows)),
        )


def shown(text: str, width: int = 70) -> str:
    """The beginning of a text."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _rest(count: int) -> str:
    return f"The first {SHOWN} of {count}." if count > SHOWN else ""
