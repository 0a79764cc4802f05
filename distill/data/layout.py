"""Which folders are splits and which are classes, from their names and depth.

1. A folder that holds nothing but one folder of folders is looked through, such as that of an unpacked archive, also
   several, also inside a split (``seg_train/seg_train/<class>``).
2. Folders whose names mean train and val or test (:mod:`distill.data.split_names`) are splits.
3. Else, the folders are classes; each may hold the splits (``<class>/train``, ``<class>/test``).

What could be read in two ways is an error that names both, and the setting that chooses.
"""

from __future__ import annotations

from collections.abc import Mapping

from distill.data.base import DataError, Split
from distill.data.layout_classes import ClassFolders
from distill.data.layout_parts import SPLITS, ClassFolder, Layout, LayoutPart
from distill.data.layout_splits import SplitFolders
from distill.data.split_names import splits_of
from distill.data.tree import Tree, join

__all__ = ["SPLITS", "ClassFolder", "Layout", "LayoutPart", "understand"]


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
        self.splits = SplitFolders(tree, labels)
        self.classes = ClassFolders(self.splits, class_folder, unsure)

    def layout(self, splits: Mapping[Split, str] | None) -> Layout:
        if not self.tree.images() and not self.tree.subfolders():
            raise DataError(f"{self.tree.root} holds no images that can be read{self.splits.instead('')}")
        if splits:
            return self._with_splits("", self.splits.given(splits))
        base = self.splits.base()
        names = self.tree.subfolders(base)
        meant = splits_of(names) if splits is None else {}
        if meant and (named := self.splits.named(base, names, meant)):
            self.splits.refuse_empty(base, named)
            return self._with_splits(base, named)
        if self.labels and not self.inner and splits is None and (layout := self.classes.holding_splits(base, names)):
            return layout
        parts = self.classes.parts(base, self.classes.single(base, names))
        return Layout(base, {}, {"train": parts}, self.inner and self.labels)

    def _with_splits(self, base: str, folders: dict[Split, str]) -> Layout:
        parts: dict[Split, list[LayoutPart]] = {}
        known: set[str] = set()
        bases = {}
        for split, path in folders.items():
            bases[split] = inside = self.splits.inside(path, known) if path else ""
            known |= set(self.tree.subfolders(inside))
        taken = set(folders.values())
        for split, inside in bases.items():
            names = [name for name in self.tree.subfolders(inside) if join(inside, name) not in taken]
            if not inside and not (self.labels and not self.inner):  # the rest of the root
                parts[split] = [LayoutPart(name, None) for name in names]
            else:
                parts[split] = self.classes.parts(inside, names)
        if self.labels and len({part.label for all_parts in parts.values() for part in all_parts} - {None}) == 1:
            self.classes.single(bases["train"], self.tree.subfolders(bases["train"]))
        return Layout(base, folders, parts, self.inner and self.labels)
