"""The interface of data sources: ``(image of 8 or 16 bits, label or none, stable id)`` for each sample of a split.

This package is imported by loader workers: it must import neither Lightning nor timm, and heavy readers
(datasets, torchvision, scikit-learn) only inside the functions that use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

import augment.base
from augment.base import Component, UserError

Split = Literal["train", "val", "test"]
UNLABELED = -1
"""The label of a sample that has none."""
MAX_CHANNELS = 12
"""Largest number of channels of an image."""


class Sample(NamedTuple):
    """One decoded image."""

    image: np.ndarray
    """uint8, or uint16 if the source's ``depth`` is 16, [H, W, C]: ``data.channels`` channels, RGB if these are 3."""
    label: int
    """Class index, or ``UNLABELED``."""
    id: str
    """Stable name of the sample, independent of order, machine and mount point."""


class Samples(Protocol):
    """One split of a source: a map-style sequence that decodes on access and is cheap to pickle."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    @property
    def labels(self) -> Sequence[int]:
        """Labels of all samples, without decoding an image."""

    @property
    def ids(self) -> Sequence[str]:
        """Ids of all samples, without decoding an image."""


@dataclass(frozen=True)
class Skipped:
    """Number of files or folders that a source does not read, for one reason."""

    reason: str
    count: int
    example: str
    """Path of one of them."""

    def __str__(self) -> str:
        return f"{self.count:,} × {self.reason}: {self.example}" + (" …" if self.count > 1 else "")


class Source(Component):
    """A source of images. ``classes`` is empty if the source has no labels."""

    class Settings(augment.base.Settings):
        type: str

    has_split: frozenset[str] = frozenset({"train"})
    """Splits that this source has; without val, samples of train are held out."""

    classes: tuple[str, ...]
    channels: int = 3
    """Channels of the images that its samples return; set before the first ``split``. See ``data.channels``."""

    depth: int = 8
    """Bits of a value of these images, 8 or 16; 16 if it reads images of more than 8 bits. ``data.depth`` replaces it
    before the first ``split``."""

    reading: str = ""
    """How folders were read as splits and classes, for the opening of a run; empty if there is nothing to tell."""
    skipped: Sequence[Skipped] = ()
    """What was not read, and why."""

    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    def split(self, name: Split) -> Samples:
        """The samples of a split. Raises ``DataError``, whose text names the folder or file and what was expected."""
        raise NotImplementedError

    def column(self, split: Split, name: str) -> Sequence[str]:
        """A column of the table that a split is read from: a text for each sample, empty without a value.

        Raises:
            DataError: the source has no table, or the table no such column.
        """
        raise DataError(
            f"the source {self.settings.type!r} has no table, so there is no column {name!r}; type: huggingface has"
            " one. What the id of an image tells is stream: {type: domains, by: folder}, and a CSV or JSON file of ids"
            " is stream: {type: manifest}"
        )


class DataError(UserError, ValueError):
    """The data cannot be used; the text names the file, folder or sample."""


@contextmanager
def source_at(key: str) -> Iterator[None]:
    """Within it, errors of a source are about the one at this key of the config. Sources themselves write data.source.

    >>> from distill.data.base import DataError, source_at
    >>> try:
    ...     with source_at("data.target"):
    ...         raise DataError("data.source.root: no folder images")
    ... except DataError as error:
    ...     print(error)
    data.target.root: no folder images
    """
    try:
        yield
    except DataError as error:
        if key == "data.source":
            raise
        raise DataError(str(error).replace("data.source", key)) from error
