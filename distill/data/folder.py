"""A folder of image files::

    root/train/<class>/*.jpg   root/val/…   root/test/…     split folders, by their common names (Training, seg_test,
                                                            my_val, valid, dev …); val and test may be missing
    root/<class>/*.jpg                                      one set, divided by test_fraction and val_fraction
    root/<class>/train/*.jpg   root/<class>/test/…          classes that hold the splits
    root/*.jpg                                              one set without labels

A folder that only wraps another (``root/plants/<class>``) is looked through; see :mod:`distill.data.layout`. Classes
are the names of the folders, sorted. A class folder is searched to any depth, links included; each folder is read once.
Hidden files and folders (``.ipynb_checkpoints``, ``._image.jpg``) are not read. A split may be a flat folder without
labels. The opening of a run and ``distill data`` show how the folders were read, and what was skipped.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.data.base import UNLABELED, DataError, Sample, Samples, Source, Split
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode
from distill.data.depth import depth_of
from distill.data.layout import ClassFolder, LayoutPart, understand
from distill.data.split import apportion, by_hash
from distill.data.tree import Tree

_Labeled = tuple[str, str | None]
"""(id, class name or None)"""


class Folder(Source):
    """Image files on disk. Ids are paths relative to ``root``, with forward slashes.

    Without a test folder, ``test_fraction`` of the training images are the test split, and likewise for val. The
    numbers are exact and stratified by class (:func:`distill.data.split.apportion`). The hashes of their ids decide
    which images of a class are taken: the lowest are test, the next val. So the division is the same on every machine,
    and a new file moves at most a few others: one of its class at each boundary between two splits, and one of another
    class where the rounding changes.
    """

    class Settings(Source.Settings):
        type: Literal["folder"] = "folder"
        root: Path = Field(description="folder of the images, relative to the current folder")
        splits: dict[Split, str] | None = Field(
            None, description="split → its folder in root; {}: no folder is a split; default: found by their names"
        )
        class_folder: ClassFolder | None = Field(
            None, description="outer: the first folder in a split is the class; inner: the folder that holds the image"
        )
        labels: bool = Field(True, description="false: subfolders are not classes")
        test_fraction: float = Field(0.0, ge=0, lt=1, description="fraction of train for test, without a test folder")
        val_fraction: float = Field(0.0, ge=0, lt=1, description="fraction of train for val, without a val folder")
        bits: int | None = Field(
            None, ge=8, le=16, description="bits in use of 16-bit images; default: by the largest value of a sample"
        )
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.root = settings.root
        if not self.root.is_dir():
            raise DataError(f"data.source.root: {_missing(self.root)}")
        tree = Tree(self.root)
        self._layout = understand(tree, settings.labels, settings.splits, settings.class_folder)
        self._files = self._read(tree)
        self._divide()
        self.has_split = frozenset(self._files)
        self.classes = self._common_classes()
        self.bits = settings.bits or self._bits_in_use()
        self.depth = depth_of(self.bits)
        depth = f"; images of more than 8 bits are read as {self.bits}-bit" if self.bits else ""
        self.reading = f"{self.root}: {self._layout}{depth}"

    def split(self, name: Split) -> Samples:
        number = {label: index for index, label in enumerate(self.classes)}
        files = self._files[name]
        labels = [UNLABELED if label is None else number[label] for _, label in files]
        ids, limit = [id for id, _ in files], self.settings.pixel_limit
        return FileSamples(self.root, ids, labels, limit, self.bits, self.channels, self.depth)

    def _read(self, tree: Tree) -> dict[Split, list[_Labeled]]:
        """The images of each part of the layout."""
        parts = [(split, part) for split, parts in self._layout.parts.items() for part in parts]
        walked, self.skipped = tree.walk([part.path for _, part in parts])
        files: dict[Split, list[_Labeled]] = {}
        for (split, part), paths in zip(parts, walked):
            if not paths and not (tree.is_link(part.path) and part.label is not None):
                raise DataError(f"{tree.path_of(part.path)} holds only links to images that are read by another path")
            files.setdefault(split, []).extend((path, self._label(part, path)) for path in paths)
        return files

    def _label(self, part: LayoutPart, path: str) -> str | None:
        """The class of an image. Macs write accents as separate characters, so names are compared in one form."""
        label = part.label
        if self._layout.inner:
            inside = path.rpartition("/")[0]
            if inside in (self._layout.base, *self._layout.folders.values()):
                raise DataError(f"{self.root / path} lies beside folders of classes: which class is it?")
            label = inside.rpartition("/")[2]
        return None if label is None else unicodedata.normalize("NFC", label)

    def _divide(self) -> None:
        """Take test and val out of train by their fractions."""
        wanted: list[tuple[Split, float]] = [
            ("test", self.settings.test_fraction),
            ("val", self.settings.val_fraction),
        ]
        for split, fraction in wanted:
            if fraction and split in self._files:
                where = self._layout.folders.get(split, split)
                raise DataError(f"{self.root} has a {split} folder, {where}: leave {split}_fraction at 0")
        if sum(fraction for _, fraction in wanted) >= 1:
            shown = " + ".join(f"{split}_fraction {fraction:g}" for split, fraction in wanted)
            raise DataError(f"{shown} leaves nothing to train on")
        if not any(fraction for _, fraction in wanted):
            return
        train = self._files["train"]
        members: dict[str | None, list[int]] = {}
        for index, (_, label) in enumerate(train):
            members.setdefault(label, []).append(index)
        ids = [id for id, _ in train]
        labels = sorted(members, key=str)
        ordered = {label: by_hash(members[label], ids, salt="folder") for label in labels}
        sizes = [len(members[label]) for label in labels]
        spare = [size - 1 for size in sizes]
        for split, fraction in wanted:
            if not fraction:
                continue
            counts = apportion(sizes, fraction, spare)
            if not sum(counts):
                raise DataError(f"{self.root}: {split}_fraction {fraction:g} of {len(train)} images is none")
            spare = [most - count for most, count in zip(spare, counts)]
            taken: list[int] = []
            for label, count in zip(labels, counts):
                taken += ordered[label][:count]
                del ordered[label][:count]
            self._files[split] = [train[index] for index in sorted(taken)]
        left = [index for indices in ordered.values() for index in indices]
        self._files["train"] = [train[index] for index in sorted(left)]

    def _common_classes(self) -> tuple[str, ...]:
        """The classes of train, or of the first split with labels; another split may have fewer of them."""
        by_split = {
            name: sorted({label for _, label in files if label is not None}) for name, files in self._files.items()
        }
        labeled = {name: labels for name, labels in by_split.items() if labels}
        if not labeled:
            return ()
        first, *others = labeled
        for other in others:
            if set(labeled[other]) - set(labeled[first]):
                raise DataError(self._mismatch(first, labeled[first], other, labeled[other]))
        return tuple(labeled[first])

    def _mismatch(self, first_name: str, first: Sequence[str], other: str, second: Sequence[str]) -> str:
        """The text for a split with classes that the first lacks."""
        lines = [f"{self.root}: {other} has classes that {first_name} lacks ({self._layout})"]
        for name, own_labels, other_labels in ((first_name, first, second), (other, second, first)):
            only = sorted(set(own_labels) - set(other_labels))
            lines.append(f"  only in {name}: {_list(only)}; all {len(own_labels)}: {_list(own_labels)}")
        strange = sorted(set(second) - set(first))
        plain = {_plain(label) for label in first}
        if similar := [label for label in strange if _plain(label) in plain]:
            lines.append(
                f"  {_list(similar)} of {other} differ only in upper and lower case, spaces, punctuation or leading"
                " zeros: rename a folder"
            )
        return "\n".join(lines)

    def _bits_in_use(self) -> int | None:
        ids = [id for files in self._files.values() for id, _ in files]
        return bits_in_use(ids, lambda index: self.root / ids[index])


class FileSamples:
    """Image files below a root.

    Args:
        root: folder.
        ids: paths relative to ``root``, with forward slashes.
        labels: class indices, ``UNLABELED`` where a sample has none.
        pixel_limit: largest width × height.
        bits: bits in use of images of more than 8 bits.
        channels: of the decoded images.
        depth: bits of a value of the decoded images.
    """

    def __init__(
        self,
        root: Path,
        ids: Sequence[str],
        labels: Sequence[int],
        pixel_limit: int,
        bits: int | None = None,
        channels: int = 3,
        depth: int = 8,
    ):
        self.root, self.ids, self.labels = root, ids, labels
        self.pixel_limit, self.bits, self.channels, self.depth = pixel_limit, bits, channels, depth

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        path = self.root / self.ids[index]
        image = decode(path, str(path), self.pixel_limit, self.bits, self.channels, self.depth)
        return Sample(image, self.labels[index], self.ids[index])

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each file, for the fingerprint."""
        return [os.stat(self.root / id).st_size for id in self.ids]


def _plain(label: str) -> str:
    """A class name in one case, without spaces, punctuation and leading zeros."""
    return re.sub(r"[\W_]+", "", label).casefold().lstrip("0") or label


def _missing(path: Path) -> str:
    """Why a path is no folder."""
    if path.is_symlink() and not path.exists():
        return f"{path} is a link to {os.readlink(path)}, which does not exist"
    if path.exists():
        return f"{path} is a file, not a folder"
    return f"no folder {path}"


def _list(names: Iterable[str], shown: int = 20) -> str:
    listed = list(names)
    more = len(listed) - shown
    return (", ".join(listed[:shown]) or "none") + (f" and {more} more" if more > 0 else "")
