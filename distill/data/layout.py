"""Which folders are splits and which are classes, from their names and depth.

1. A folder that holds nothing but one folder of folders is looked through, such as that of an unpacked archive, also
   several, also inside a split (``seg_train/seg_train/<class>``).
2. Folders whose names mean train and val or test (:mod:`distill.data.split_names`) are splits.
3. Else, the folders are classes; each may hold the splits (``<class>/train``, ``<class>/test``).

What could be read in two ways is an error that names both, and the setting that chooses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from distill.data.base import DataError, Split
from distill.data.split_names import split_of, splits_of
from distill.data.tree import Tree, join

ClassFolder = Literal["outer", "inner"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_PLAIN = frozenset(["images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "pics", "data", "dataset"])
"""Names of folders that are no class."""
_SHOWN = 6


class LayoutPart(NamedTuple):
    """A folder whose images, at any depth, belong to one split and one class."""

    path: str
    label: str | None
    """Class name; None: no label, or the name of the folder that an image is in, with ``inner``."""


@dataclass(frozen=True)
class Layout:
    """How a folder is read. Paths are relative to the root."""

    base: str
    """The folder that holds the splits or classes: ``""`` or a wrapper that was looked through."""
    folders: dict[Split, str]
    """Split → its folder; empty if there are no split folders."""
    parts: dict[Split, list[LayoutPart]]
    """Split → its folders of images; only train without split folders."""
    inner: bool = False
    """Whether the folder that holds an image is its class."""

    def __str__(self) -> str:
        within = f" in {self.base}" if self.base else ""
        if self.folders:
            return ", ".join(f"{split} is {path or 'the rest'}" for split, path in self.folders.items())
        if len(self.parts) > 1:
            return f"each class folder{within} holds {', '.join(self.parts)}"
        if self.inner:
            return f"the folders{within} that hold images are classes"
        labeled = any(part.label is not None for part in self.parts["train"])
        return f"the folders{within} are classes" if labeled else f"images without labels{within or ' in the root'}"


def understand(
    tree: Tree,
    labels: bool = True,
    splits: Mapping[Split, str] | None = None,
    class_folder: ClassFolder | None = None,
) -> Layout:
    """The splits and classes of a folder.

    Args:
        tree: the folder.
        labels: false: folders are no classes.
        splits: split → its folder below the root; empty: there are no split folders; None: found by their names.
        class_folder: of nested folders, whether the outer or the inner ones are classes; None: an error if
            both could be.

    Returns:
        The layout.

    Raises:
        DataError: there are no images, a split's folder is missing, or there are two readings.
    """
    return _Reader(tree, labels, class_folder, unsure=splits != {}).layout(splits)


class _Reader:
    def __init__(self, tree: Tree, labels: bool, class_folder: ClassFolder | None, unsure: bool):
        self.tree, self.labels, self.inner = tree, labels, class_folder == "inner"
        self.class_folder, self.unsure = class_folder, unsure

    def layout(self, splits: Mapping[Split, str] | None) -> Layout:
        if not self.tree.images() and not self.tree.subfolders():
            raise DataError(f"{self.tree.root} holds no images that can be read{self._instead('')}")
        if splits:
            return self._with_splits("", self._given(splits))
        base = self._base()
        names = self.tree.subfolders(base)
        meant = splits_of(names) if splits is None else {}
        if meant and (named := self._named_splits(base, names, meant)):
            self._refuse_empty(base, named)
            return self._with_splits(base, named)
        if self.labels and not self.inner and splits is None and (classes_first := self._classes_first(base, names)):
            return classes_first
        parts = self._parts(base, self._single(base, names))
        return Layout(base, {}, {"train": parts}, self.inner and self.labels)

    def _instead(self, path: str) -> str:
        """What a folder without images holds, for errors."""
        return "".join(f"\n  {skipped}" for skipped in self.tree.skipped_below(path))

    def _given(self, splits: Mapping[Split, str]) -> dict[Split, str]:
        """The folders of ``data.source.splits``."""
        if "train" not in splits:
            raise DataError("data.source.splits must name the folder of train, or be {}: no folder is a split")
        folders = {}
        for split, given in splits.items():
            path = Path(os.path.normpath(given)).as_posix()
            if path == "." and split == "train":
                path = ""
            elif path == "." or path.startswith("..") or os.path.isabs(path):
                raise DataError(f"data.source.splits.{split}: {given} is not a folder below {self.tree.root}")
            parent, _, _ = path.rpartition("/")
            if not self.tree.exists(path):
                here = self.tree.subfolders(parent) if not parent or self.tree.exists(parent) else []
                raise DataError(
                    f"data.source.splits.{split}: no folder {given} with images in {self.tree.root}"
                    + (f"; there are {_some(here)}" if here else "")
                )
            folders[split] = path
        return {split: folders[split] for split in SPLITS if split in folders}

    def _base(self) -> str:
        """The folder that holds splits, classes or unlabeled images: the root, or what a wrapper wraps."""
        base = ""
        while not self.tree.images(base):
            names = self.tree.subfolders(base)
            if len(names) != 1:
                break
            inside = join(base, names[0])
            if split_of(names[0]) and not self._holds_splits(inside):
                break
            if self.tree.images(inside) and names[0].lower() not in _PLAIN:
                break
            base = inside
        return base

    def _holds_splits(self, path: str) -> bool:
        meant = set(splits_of(self.tree.subfolders(path)).values())
        return "train" in meant and len(meant) > 1

    def _named_splits(self, base: str, names: list[str], meant: dict[str, Split]) -> dict[Split, str] | None:
        """Split → folder; None if the folders are classes in spite of their names."""
        by_split = {split: [name for name in names if meant.get(name) == split] for split in SPLITS}
        by_split = {split: same for split, same in by_split.items() if same}
        others = [name for name in names if name not in meant]
        flat = all(not self.tree.subfolders(join(base, name)) for name in names)
        several = any(len(same) > 1 for same in by_split.values())
        folders = {split: join(base, same[0]) for split, same in by_split.items()}
        if "train" in by_split and not several and (len(by_split) > 1 or not others):
            if others and flat and self.labels:
                raise self._ambiguous(
                    base, f"{_some(meant)} beside {_some(others)}, none with folders in it", folders, names
                )
            return folders
        if flat and len(by_split) == 1 and len(names) > 1 and ("train" in by_split or len(names) == 2):
            return None  # classes such as car and train, valid and invalid
        if not others and len(by_split) == 1 and "train" not in by_split:
            raise DataError(
                f"{self.tree.path_of(base)} holds {_some(names)} and no folder of training images;"
                f" to train on {names[0]}, set data.source.root to {self.tree.path_of(join(base, names[0]))}"
                f"{self._instead(base)}"
            )
        if "train" not in by_split:
            folders = self._train_in(base, others) | folders
        if several:
            why = f"{_some(meant)} are named like splits, several like the same one"
        else:
            why = f"{_some(meant)} named like a split, " + (
                f"beside {_some(others)}" if others else "but none like train"
            )
        raise self._ambiguous(base, why, folders, names)

    def _refuse_empty(self, base: str, folders: Mapping[Split, str]) -> None:
        """Raise ``DataError`` if there is a folder for another split, without images that can be read."""
        for name in self.tree.without_images(base):
            if split_of(name) not in (None, *folders):
                path = join(base, name)
                raise DataError(
                    f"{self.tree.path_of(path)} holds no images that can be read; move or delete it, or set"
                    f" data.source.splits{self._instead(path)}"
                )

    def _train_in(self, base: str, names: list[str]) -> dict[Split, str]:
        """The splits that a wrapper among some folders holds, else where train could be."""
        for name in names:
            path = self._inside(join(base, name), set())
            if self._holds_splits(path):
                return {split: join(path, each) for each, split in splits_of(self.tree.subfolders(path)).items()}
        return {"train": join(base, names[0]) if len(names) == 1 else base or "."} if names else {}

    def _ambiguous(self, base: str, why: str, folders: Mapping[Split, str], names: Sequence[str]) -> DataError:
        """The error for folders that are splits or classes."""
        shown = ", ".join(
            f"{split}: {path!r}" if " " in path else f"{split}: {path}" for split, path in folders.items()
        )
        return DataError(
            f"{self.tree.path_of(base)} can be read in two ways ({why}):\n"
            f"  as splits: set data.source.splits to {{{shown}}}, or other folders\n"
            f"  as {len(names)} classes, {_some(names)}: set data.source.splits to {{}}"
        )

    def _with_splits(self, base: str, folders: dict[Split, str]) -> Layout:
        parts: dict[Split, list[LayoutPart]] = {}
        known: set[str] = set()
        bases = {}
        for split, path in folders.items():
            bases[split] = inside = self._inside(path, known) if path else ""
            known |= set(self.tree.subfolders(inside))
        taken = set(folders.values())
        for split, inside in bases.items():
            names = [name for name in self.tree.subfolders(inside) if join(inside, name) not in taken]
            if not inside and not (self.labels and not self.inner):  # the rest of the root
                parts[split] = [LayoutPart(name, None) for name in names]
            else:
                parts[split] = self._parts(inside, names)
        if self.labels and len({part.label for all_parts in parts.values() for part in all_parts} - {None}) == 1:
            self._single(bases["train"], self.tree.subfolders(bases["train"]))
        return Layout(base, folders, parts, self.inner and self.labels)

    def _inside(self, path: str, known: set[str]) -> str:
        """The folder of a split that holds its classes: itself, or what a wrapper in it wraps."""
        while not self.tree.images(path):
            names = self.tree.subfolders(path)
            if len(names) != 1 or names[0] in known:
                break
            inside, parent = join(path, names[0]), path.rpartition("/")[2]
            same = (
                names[0].lower() in _PLAIN or names[0] == parent or split_of(names[0]) == split_of(parent) is not None
            )
            if self.tree.images(inside) and not same:
                break
            path = inside
        return path

    def _single(self, base: str, names: list[str]) -> list[str]:
        """The names of class folders. Raises ``DataError`` for a single one, which may also be no class."""
        if self.labels and not self.inner and len(names) == 1 and not self.tree.images(base):
            raise DataError(
                f"{self.tree.path_of(base)} can be read in two ways, since all images are in one folder, {names[0]}:\n"
                f"  as images without labels: set data.source.labels to false\n"
                f"  as one class, {names[0]!r}, which cannot be learned: add folders of other classes"
            )
        return names

    def _parts(self, base: str, names: list[str]) -> list[LayoutPart]:
        """The folders of images in a split's folder, one for each class."""
        if self.unsure:
            self._refuse_splits_within(base, names)
        if not self.labels or not names or self.inner:
            return [LayoutPart(base, None)]
        stray = self.tree.images(base)
        if stray:
            raise DataError(
                f"{self.tree.path_of(join(base, stray[0]))} lies beside class folders ({_some(names)}): which class is"
                " it? (data.source.labels: false reads all images without labels)"
            )
        empty = self.tree.without_images(base)
        if empty:
            raise DataError(
                f"class folder {self.tree.path_of(join(base, empty[0]))} holds no images that can be read;"
                f" move or delete it if it is no class{self._instead(join(base, empty[0]))}"
            )
        self._refuse_two_levels(base, names)
        return [LayoutPart(join(base, name), name) for name in names]

    def _classes_first(self, base: str, names: list[str]) -> Layout | None:
        """The layout ``<class>/<split>/*.jpg``, or None."""
        if len(names) < 2 or not all(self._holds_splits(join(base, name)) for name in names):
            return None
        parts: dict[Split, list[LayoutPart]] = {}
        for name in names:
            path = join(base, name)
            inside = self.tree.subfolders(path)
            meant = splits_of(inside)
            strange = [each for each in inside if each not in meant] + self.tree.images(path)
            nested = [each for each in inside if self.tree.subfolders(join(path, each))]
            if strange or nested or len(set(meant.values())) < len(inside):
                raise self._splits_within(path, inside)
            for each, split in meant.items():
                parts.setdefault(split, []).append(LayoutPart(join(path, each), name))
        return Layout(base, {}, {split: parts[split] for split in SPLITS if split in parts})

    def _refuse_splits_within(self, base: str, names: list[str]) -> None:
        if self._holds_splits(base):
            raise self._splits_within(base, names)
        for name in names:
            for path in self.tree.folders_below(join(base, name)):
                if self._holds_splits(path):
                    raise self._splits_within(path, self.tree.subfolders(path))

    def _splits_within(self, path: str, inside: Sequence[str]) -> DataError:
        where = self.tree.path_of(path)
        return DataError(
            f"{where} can be read in two ways, for it holds {_some(inside)}:\n"
            f"  as a data set with splits: set data.source.root to {where}\n"
            f"  as part of a class, with the images of all its folders: set data.source.splits to {{}}"
        )

    def _refuse_two_levels(self, base: str, names: list[str]) -> None:
        """Raise ``DataError`` if all class folders hold the same folders, and no images beside them."""
        if self.class_folder is not None or len(names) < 2:
            return
        inner = [self.tree.subfolders(join(base, name)) for name in names]
        if len(inner[0]) < 2 or any(each != inner[0] for each in inner):
            return
        if any(self.tree.images(join(base, name)) for name in names) or splits_of(inner[0]):
            return
        raise DataError(
            f"{self.tree.path_of(base)} can be read in two ways, for each of its folders holds {_some(inner[0])}:\n"
            f"  as {len(names)} classes, {_some(names)}: set data.source.class_folder to outer\n"
            f"  as {len(inner[0])} classes, {_some(inner[0])}: set data.source.class_folder to inner"
        )


def _some(names: Sequence[str] | Mapping[str, object]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN
    return ", ".join(listed[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
