"""Which folders of a tree are splits: by their names, or as the settings say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill.data.base import DataError, Split
from distill.data.layout_parts import PLAIN, SPLITS, some
from distill.data.split_names import split_of, splits_of
from distill.data.tree import Tree, join


class SplitFolders:
    """Finds the folders of the splits.

    Args:
        tree: the folder.
        labels: whether folders are classes.
    """

    def __init__(self, tree: Tree, labels: bool):
        self.tree, self.labels = tree, labels

    def given(self, splits: Mapping[Split, str]) -> dict[Split, str]:
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
                    + (f"; there are {some(here)}" if here else "")
                )
            folders[split] = path
        return {split: folders[split] for split in SPLITS if split in folders}

    def base(self) -> str:
        """The folder that holds splits, classes or unlabeled images: the root, or what a wrapper wraps."""
        base = ""
        while not self.tree.images(base):
            names = self.tree.subfolders(base)
            if len(names) != 1:
                break
            inside = join(base, names[0])
            if split_of(names[0]) and not self.holds_splits(inside):
                break
            if self.tree.images(inside) and names[0].lower() not in PLAIN and not self.holds_splits(inside):
                break
            base = inside
        return base

    def holds_splits(self, path: str) -> bool:
        """Whether a folder holds train and another split."""
        meant = set(splits_of(self.tree.subfolders(path)).values())
        return "train" in meant and len(meant) > 1

    def named(self, base: str, names: list[str], meant: dict[str, Split]) -> dict[Split, str] | None:
        """The folders of the splits, by their names.

        Args:
            base: the folder that holds them.
            names: of all folders in it.
            meant: name → split, for those that are named like one.

        Returns:
            Split → folder; None if the folders are classes in spite of their names.

        Raises:
            DataError: there are two readings.
        """
        by_split = {split: [name for name in names if meant.get(name) == split] for split in SPLITS}
        by_split = {split: same for split, same in by_split.items() if same}
        others = [name for name in names if name not in meant]
        flat = all(not self.tree.subfolders(join(base, name)) for name in names)
        several = any(len(same) > 1 for same in by_split.values())
        folders = {split: join(base, same[0]) for split, same in by_split.items()}
        if "train" in by_split and not several and (len(by_split) > 1 or not others):
            if others and flat and self.labels:
                raise self._ambiguous(
                    base, f"{some(meant)} beside {some(others)}, none with folders in it", folders, names
                )
            return folders
        if flat and len(by_split) == 1 and len(names) > 1 and ("train" in by_split or len(names) == 2):
            return None  # classes such as car and train, valid and invalid
        if not others and len(by_split) == 1 and "train" not in by_split:
            raise DataError(
                f"{self.tree.path_of(base)} holds {some(names)} and no folder of training images;"
                f" to train on {names[0]}, set data.source.root to {self.tree.path_of(join(base, names[0]))}"
                f"{self.instead(base)}"
            )
        if "train" not in by_split:
            folders = self._train_in(base, others) | folders
        if several:
            why = f"{some(meant)} are named like splits, several like the same one"
        else:
            why = f"{some(meant)} named like a split, " + (
                f"beside {some(others)}" if others else "but none like train"
            )
        raise self._ambiguous(base, why, folders, names)

    def refuse_empty(self, base: str, folders: Mapping[Split, str]) -> None:
        """Raise ``DataError`` if there is a folder for another split, without images that can be read."""
        for name in self.tree.without_images(base):
            if split_of(name) not in (None, *folders):
                path = join(base, name)
                raise DataError(
                    f"{self.tree.path_of(path)} holds no images that can be read; move or delete it, or set"
                    f" data.source.splits{self.instead(path)}"
                )

    def inside(self, path: str, known: set[str]) -> str:
        """The folder of a split that holds its classes: itself, or what a wrapper in it wraps."""
        while not self.tree.images(path):
            names = self.tree.subfolders(path)
            if len(names) != 1 or names[0] in known:
                break
            inside, parent = join(path, names[0]), path.rpartition("/")[2]
            same = names[0].lower() in PLAIN or names[0] == parent or split_of(names[0]) == split_of(parent) is not None
            if self.tree.images(inside) and not same:
                break
            path = inside
        return path

    def _train_in(self, base: str, names: list[str]) -> dict[Split, str]:
        """The splits that a wrapper among some folders holds, else where train could be."""
        for name in names:
            path = self.inside(join(base, name), set())
            if self.holds_splits(path):
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
            f"  as {len(names)} classes, {some(names)}: set data.source.splits to {{}}"
        )

    def instead(self, path: str) -> str:
        """What a folder without images holds, for errors."""
        return "".join(f"\n  {skipped}" for skipped in self.tree.skipped_below(path))
