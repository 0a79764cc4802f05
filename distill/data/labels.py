"""Reads the labels of a source's splits: class names, numbers, or numbers that stand for names → class indices.

Names rule: where a split or one of its files has class names, a number is replaced by its name before anything is
compared, so the order of the names may differ. Numbers without names are class indices if those of train are 0, 1, …
without a gap; any other numbers (−1 and 1, 1 to 5, 555 and 999999) are classes of their own, named by the number. A
class that another split has and train lacks is an error that shows both lists.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field

from distill.data.base import UNLABELED, DataError, Source, Split

SHOWN = 8
"""Classes of a list that an error shows."""
_NUMBER = re.compile(r"[-+]?\d+$")


def _as_names(value: Any) -> Any:
    """YAML's numbers and truth values as class names."""
    if isinstance(value, list | tuple):
        return tuple(str(item) if isinstance(item, bool | int) else item for item in value)
    return value


class LabelSettings(Source.Settings):
    """What the labels of a source stand for, where the data does not tell."""

    classes: Annotated[Annotated[int, Field(ge=1)] | tuple[str, ...] | None, BeforeValidator(_as_names)] = Field(
        None, description="number of classes, or their names in the order of the label numbers; default: the data's"
    )
    unlabeled: int | None = Field(
        None, description="number that means no label; default: a missing value, or -1 where the data has class names"
    )


class LabelColumn(NamedTuple):
    """The labels of a split, or of one of its files."""

    values: Sequence[Any]
    """Of each sample: a name, a number, or None without a label."""
    names: Sequence[str] | None = None
    """The names that numbers stand for, in their order; None: the data has no names."""


Label = str | int | None


def read_labels(
    splits: Mapping[Split, Sequence[LabelColumn]], where: str, settings: LabelSettings
) -> tuple[tuple[str, ...], dict[Split, list[int]]]:
    """The classes of a source, and the class index of each sample.

    Args:
        splits: the columns of each split; together they hold all of its samples in order.
        where: name of the data, for errors.
        settings: declared classes, and the number that means no label.

    Returns:
        The class names, and for each split the class indices, ``UNLABELED`` where a sample has no label.

    Raises:
        DataError: a label is no class (a list, a fraction), a number is out of range, −1 is either a class or no label,
            or a split has classes that train lacks; the text shows the row, or both lists of classes.
    """
    labels: dict[Split, list[Label]] = {}
    for split, columns in splits.items():
        labels[split] = []
        for column in columns:
            labels[split] += _labels_of(column, (where, split), settings, len(labels[split]))
    named = {split: any(column.names for column in columns) for split, columns in splits.items()}
    first = _first_labeled(labels, named)
    lists = [column.names for column in splits[first] if column.names] if first else []
    origin: str = str(first)
    classes: tuple[str, ...] = ()
    if isinstance(settings.classes, tuple):
        origin, classes = "data.source.classes", check_names(settings.classes, f"{where}: data.source.classes")
    elif lists:
        classes = _common(lists, f"{where}: {first}")
        if settings.classes not in (None, len(classes)):
            raise DataError(f"data.source.classes {settings.classes}, but {where} names {shortened(classes)}")
    elif settings.classes is not None:
        origin, classes = f"data.source.classes {settings.classes}", tuple(map(str, range(settings.classes)))
    elif first:
        classes = _classes_of(labels[first], f"{where}: {first}")
    for split, own in labels.items():
        if str(UNLABELED) not in classes and split != first and set(own) == {UNLABELED}:
            labels[split] = [None] * len(own)  # a split whose labels are withheld
    index: dict[Label, int] = {name: number for number, name in enumerate(classes)}
    numbers = {label for own in labels.values() for label in own if isinstance(label, int)}
    if settings.classes is not None and not all(str(number) in index for number in numbers):
        index |= {number: number for number in range(len(classes))}
    else:
        index |= {number: index[str(number)] for number in numbers if str(number) in index}
    index[None] = UNLABELED
    for split, own in labels.items():
        strange = set(own) - set(index)
        if UNLABELED in strange:
            raise DataError(f"{where}: {split} has labels -1. {_class_or_none(UNLABELED)}")
        if strange:
            raise mismatch(where, origin, classes, split, _sorted(own))
    return classes, {split: [index[label] for label in own] for split, own in labels.items()}


def check_names(names: Iterable[Any], where: str) -> tuple[str, ...]:
    """Class names as a tuple.

    Raises:
        DataError: a name is empty or no text, or two classes have the same name.
    """
    given = tuple(_normalized(names))
    for name in given:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{where}: {name!r} is no class name ({shortened(given)})")
    if len(set(given)) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise DataError(f"{where}: two classes have the name {twice!r}")
    return given


def _normalized(names: Iterable[Any]) -> list[Any]:
    """Names in one Unicode form; Macs write accents as separate characters."""
    return [unicodedata.normalize("NFC", name) if isinstance(name, str) else name for name in names]


def mismatch(where: str, reference: str, its_classes: Sequence[Any], other: str, others: Sequence[Any]) -> DataError:
    """The error for two lists of classes that differ; it shows both.

    Args:
        where: name of the data.
        reference: what has the classes ``its_classes``, with which the others are compared.
        its_classes: names or numbers.
        other: what has the classes ``others``.
        others: names or numbers.

    Returns:
        The error, to be raised.
    """
    known = {str(name) for name in its_classes}
    strange = [name for name in others if str(name) not in known]
    if strange:
        about = f"{other} has classes that {reference} lacks ({shortened(strange)})"
    else:
        about = f"{other} has {'the same classes in another order' if len(others) == len(known) else 'fewer classes'}"
    hint = ""
    if any(isinstance(name, int) for name in others):
        hint = "\n  if the numbers count classes from 0, declare them: data.source.classes, a number or a list of names"
    return DataError(f"{where}: {about}\n  {reference}: {shortened(its_classes)}\n  {other}: {shortened(others)}{hint}")


def shortened(names: Collection[Any]) -> str:
    """The first names of a list and its length: ``cat, dog, … (100 in all)``."""
    texts = [repr(name) if str(name) != str(name).strip() else str(name) for name in list(names)[:SHOWN]]
    shown = [text if len(text) <= 40 else f"{text[:39]}…" for text in texts]
    return ", ".join(shown) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "") if shown else "none"


def _class_or_none(number: int) -> str:
    """What to do about a number that may mean no label."""
    listed = f"[{number}, 0, 1]" if number < 0 else f"[0, 1, {number}]"
    return (
        f"{number} is either a class or means no label: set data.source.unlabeled: {number} for no label, or list the"
        f" classes in data.source.classes, such as {listed}"
    )


def _first_labeled(labels: Mapping[Split, Sequence[Label]], named: Mapping[Split, bool]) -> Split | None:
    """The split that the classes are read from: train, or the next one that has any."""
    order: tuple[Split, ...] = ("train", "val", "test")
    for split in order:
        own = {label for label in labels.get(split, ()) if label is not None}
        if named.get(split) or own - {UNLABELED}:
            return split
    return None


def _common(lists: Sequence[Sequence[str]], where: str) -> tuple[str, ...]:
    """The class names of a split's files: the order of the first; others may have another order."""
    for names in lists:
        if set(_normalized(names)) != set(_normalized(lists[0])):
            raise mismatch(where, "one file", lists[0], "another file", names)
    return check_names(lists[0], where)


def _labels_of(column: LabelColumn, place: tuple[str, str], settings: LabelSettings, first: int) -> list[Label]:
    """Names, numbers without a name, or None; ``first`` is the row of the first value in the split."""
    names = None if column.names is None else tuple(_normalized(column.names))
    labels: list[Label] = []
    for row, value in enumerate(column.values, first):
        label = _plain(value, place, row)
        if isinstance(label, int):
            if label == settings.unlabeled or (names is not None and label == UNLABELED):
                label = None
            elif names is not None:
                if not 0 <= label < len(names):
                    raise DataError(
                        f"{_row(place, row)} has the label {label}, and there are {len(names)} classes:"
                        f" {shortened(names)}"
                    )
                label = names[label]
        labels.append(label)
    return labels


def _row(place: tuple[str, str], row: int) -> str:
    where, split = place
    return f"{where}: row {row} of {split}"


def _plain(value: Any, place: tuple[str, str], row: int) -> Label:
    if value is None or type(value) is int:
        return value  # type: ignore[no-any-return]
    if type(value) is str and value.strip():
        return unicodedata.normalize("NFC", value)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a scalar of numpy or torch
        return _plain(value.item(), place, row)
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, bytes):  # NumPy's type S, and HDF5
        return _plain(value.decode(errors="replace"), place, row)
    if isinstance(value, list | tuple | np.ndarray) and np.size(value) == 1:  # labels [N, 1], as Keras has them
        return _plain(np.ravel(np.asarray(value, object))[0], place, row)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():
            return int(value)
        what = "a fraction, which is no class number"
    elif isinstance(value, str):
        what = "empty; a missing label is a missing value (null)"
    elif hasattr(value, "__len__") and not isinstance(value, bytes):
        what = "several values, and an image has one class here (labels with several classes are not supported; of"
        what += " one-hot labels store the number of the class)"
    else:
        what = f"a {type(value).__name__}, neither a class number nor a name"
    raise DataError(f"{_row(place, row)} has the label {shortened([repr(value)])}: {what}")


def _classes_of(labels: Sequence[Label], where: str) -> tuple[str, ...]:
    """The classes of labels without declared names."""
    distinct = {label for label in labels if label is not None}
    if all(isinstance(label, int) for label in distinct):
        if (number := _may_mean_no_label(distinct)) is not None:  # type: ignore[arg-type]
            raise DataError(f"{where} has the labels {shortened(_sorted(distinct))}. {_class_or_none(number)}")
    elif any(isinstance(label, int) for label in distinct):
        raise DataError(f"{where} has names and numbers as labels: {shortened(_sorted(distinct))}")
    classes = tuple(map(str, _sorted(distinct)))
    stripped = {name.strip(): name for name in classes}
    if twin := next((name for name in classes if stripped[name.strip()] != name), None):
        raise DataError(f"{where}: the classes {twin!r} and {stripped[twin.strip()]!r} differ only in spaces")
    return ("False", "True") if set(classes) <= {"False", "True"} else classes


def _may_mean_no_label(numbers: Collection[int]) -> int | None:
    """A single negative number, such as -1 or -100, or 255, beside numbers that count classes from 0."""
    for number in (number for number in (*sorted(numbers)[:1], 255) if number in numbers):
        others = set(numbers) - {number}
        counted = others == set(range(len(others)))
        if counted and (number < 0 or (number == 255 and 1 < len(others) < 255)):
            return number
    return None


def _sorted(labels: Iterable[Label]) -> list[str | int]:
    """Distinct labels: by number if all are numbers, else by name."""
    distinct = {label for label in labels if label is not None}
    if all(_NUMBER.match(str(label)) for label in distinct):
        return sorted(distinct, key=lambda label: (int(label), str(label)))
    return sorted(distinct, key=str)
