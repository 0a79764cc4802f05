"""The interface of sources for object detection: images without labels, and the boxes in each of them.

Every such source is an ordinary :class:`distill.data.base.Source` of images without labels too, so a backbone can be
distilled on the same images before a detector is trained.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from distill.data.base import UNLABELED, DataError, Samples, Skipped, Source, Split
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT
from distill.data.folder import FileSamples

ROUNDING = 1.0
"""Pixels by which a box may reach beyond its image: annotation tools round, and some count from 1."""
REASONS = {
    "zero": "box without area",
    "outside": "box that reaches beyond its image",
    "class": "box of an unknown class",
}


@dataclass(frozen=True)
class Boxes:
    """The objects of one image.

    Args:
        corners: [N, 4] float64: left, top, right, bottom, in pixels of the image, whose own corners are (0, 0) and
            (width, height).
        labels: [N] int64, indices into the categories of the source.
        ignored: [N] bool: groups (COCO's ``iscrowd``) and objects that are marked difficult (VOC). They are not trained
            on, and what is detected there counts neither as right nor as wrong.
        size: (height, width) of the image, as its annotations say.
    """

    corners: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def kept(self, mask: np.ndarray) -> Boxes:
        """Some of the objects; ``mask`` is bool [N]."""
        return Boxes(self.corners[mask], self.labels[mask], self.ignored[mask], self.size)


class BoxSource(Source):
    """A source of images with boxes. Samples have no label; ``categories`` are the names of the objects' classes."""

    class Settings(Source.Settings):
        root: Path = Field(description="folder of the data, relative to the current folder")
        bad_boxes: Literal["error", "drop"] = Field(
            "error",
            description="boxes without area, outside of their image or of an unknown class: an error, or left out"
            " (a box that reaches beyond its image is cut off) and counted",
        )
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

    settings: Settings
    categories: tuple[str, ...]
    classes: tuple[str, ...] = ()

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._skipped: dict[str, list[str]] = {}
        self._boxes: dict[Split, Sequence[Boxes]] = {}
        if not settings.root.is_dir():
            raise DataError(f"data.source.root: no folder {settings.root}")

    @property
    def skipped(self) -> Sequence[Skipped]:  # type: ignore[override]
        return [Skipped(REASONS[kind], len(where), where[0]) for kind, where in self._skipped.items()]

    def objects(self, name: Split) -> Sequence[Boxes]:
        """The objects of each sample of ``split(name)``, in the same order."""
        raise NotImplementedError

    def boxes(self, name: Split) -> Sequence[Boxes]:
        """What :meth:`objects` gives, read once."""
        if name not in self._boxes:
            self._boxes[name] = self.objects(name)
        return self._boxes[name]

    def files(self, ids: Sequence[str]) -> Samples:
        """Samples of image files below the root; raises ``DataError`` if some do not exist.

        Args:
            ids: paths relative to the root.
        """
        missing = [id for id in ids if not (self.settings.root / id).is_file()]
        if missing:
            raise DataError(
                f"{self.settings.root}: {len(missing)} of {len(ids)} images that the annotations name do not exist,"
                f" the first {missing[0]}"
            )
        labels = [UNLABELED] * len(ids)
        return FileSamples(self.settings.root, ids, labels, self.settings.pixel_limit, None, self.channels, self.depth)

    def boxes_of(
        self, entries: Iterable[tuple[str, Sequence[float], int | None, bool]], size: tuple[int, int]
    ) -> Boxes:
        """The boxes of one image, checked.

        Args:
            entries: (where it is written, corners, category or None for an unknown one, ignored) of each object.
            size: (height, width) of the image.

        Returns:
            The objects, cut off at the border of the image.

        Raises:
            DataError: names the object, and what is wrong with it, unless ``bad_boxes`` is ``drop``.
        """
        height, width = size
        corners, labels, ignored = [], [], []
        for where, (left, top, right, bottom), label, crowd in entries:
            cut = [max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))]
            beyond = max(-left, -top, right - width, bottom - height)
            shown = f"({left:g}, {top:g}) to ({right:g}, {bottom:g})"
            if label is None:
                self._bad("class", where, shown)
                continue
            if not (right > left and bottom > top):  # also of NaN
                self._bad("zero", where, shown)
                continue
            if not beyond <= ROUNDING:
                self._bad("outside", where, f"{shown}, in an image of {width} x {height}")
                if not (cut[2] > cut[0] and cut[3] > cut[1]):
                    continue
            if cut[2] > cut[0] and cut[3] > cut[1]:
                corners.append(cut)
                labels.append(label)
                ignored.append(crowd)
        return Boxes(
            np.asarray(corners, dtype=np.float64).reshape(-1, 4),
            np.asarray(labels, dtype=np.int64),
            np.asarray(ignored, dtype=bool),
            size,
        )

    def _bad(self, kind: str, where: str, what: str) -> None:
        if self.settings.bad_boxes == "error":
            raise DataError(f"{where}: {REASONS[kind]}: {what}; data.source.bad_boxes: drop leaves such boxes out")
        self._skipped.setdefault(kind, []).append(where)


def check_inside(path: str, where: Path) -> str:
    """The path, if it stays in the folder of the data. Raises ``DataError``, which names the annotations ``where``."""
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise DataError(f"{where}: {path!r} leads out of the folder of the data")
    return path


def check_ids(ids: Sequence[str], where: Path) -> None:
    """Raise ``DataError`` if an image is named twice in the annotations ``where``, or lies elsewhere, or if none is."""
    if not ids:
        raise DataError(f"{where}: no image")
    seen: set[str] = set()
    for id in ids:
        check_inside(id, where)
        if id in seen:
            raise DataError(f"{where}: names the image {id} twice")
        seen.add(id)
