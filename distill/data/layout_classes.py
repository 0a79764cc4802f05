"""Which folders of a split are classes."""

from __future__ import annotations

from collections.abc import Sequence

from distill.data.base import DataError, Split
from distill.data.layout_parts import PLAIN, SPLITS, TARGETS, WITHOUT_LABELS, ClassFolder, Layout, LayoutPart, some
from distill.data.layout_splits import SplitFolders
from distill.data.split_names import splits_of
from distill.data.tree import join


class ClassFolders:
    """Finds the folders of the classes.

    Args:
        splits: of the same tree.
        class_folder: of nested folders, whether the outer or the inner ones are classes; None: an error if both
            could be.
        unsure: whether folders inside may be splits.
    """

    def __init__(self, splits: SplitFolders, class_folder: ClassFolder | None, unsure: bool):
        self.splits, self.tree, self.labels = splits, splits.tree, splits.labels
        self.class_folder, self.inner, self.unsure = class_folder, class_folder == "inner", unsure

    def single(self, base: str, names: list[str]) -> list[str]:
        """The names of class folders. Raises ``DataError`` for a single one, which may also be no class."""
        if self.labels and not self.inner and len(names) == 1 and not self.tree.images(base):
            raise DataError(
                f"{self.tree.path_of(base)} can be read in two ways, since all images are in one folder, {names[0]}:\n"
                f"  as images without labels: set data.source.labels to false\n"
                f"  as one class, {names[0]!r}, which cannot be learned: add folders of other classes"
            )
        return names

    def parts(self, base: str, names: list[str]) -> list[LayoutPart]:
        """The folders of images in a split's folder, one for each class."""
        if self.unsure:
            self._refuse_splits_within(base, names)
        if not self.labels or not names or self.inner:
            return [LayoutPart(base, None)]
        stray = self.tree.images(base)
        if stray:
            raise DataError(
                f"{self.tree.path_of(join(base, stray[0]))} lies beside class folders ({some(names)}): which class is"
                " it? (data.source.labels: false reads all images without labels)"
            )
        empty = self.tree.without_images(base)
        if empty:
            raise DataError(
                f"class folder {self.tree.path_of(join(base, empty[0]))} holds no images that can be read;"
                f" move or delete it if it is no class{self.splits.instead(join(base, empty[0]))}"
            )
        self._refuse_targets(base, names)
        labeled = [name for name in names if not self._is_without_labels(base, name)]
        self._refuse_two_levels(base, labeled)
        return [LayoutPart(join(base, name), name if name in labeled else None) for name in names]

    def _is_without_labels(self, base: str, name: str) -> bool:
        """Whether a folder beside those of classes holds images without labels."""
        return self.class_folder is None and name.lower() in WITHOUT_LABELS

    def _refuse_targets(self, base: str, names: Sequence[str]) -> None:
        """Raise ``DataError`` if one folder seems to hold images and the others their masks."""
        plain = [name for name in names if name.lower() in PLAIN]
        others = [name for name in names if name.lower() in TARGETS]
        if self.class_folder is not None or len(plain) != 1 or not others or len(names) > 1 + len(others):
            return
        images = self.tree.path_of(join(base, plain[0]))
        raise DataError(
            f"{self.tree.path_of(base)} can be read in two ways, for {some(others)} may hold a picture for each image"
            f" of {plain[0]}:\n"
            f"  as the images of {plain[0]} alone: set data.source.root to {images}, or data.source.splits to such"
            " folders\n"
            f"  as {len(names)} classes, {some(names)}: set data.source.class_folder to outer"
        )

    def holding_splits(self, base: str, names: list[str]) -> Layout | None:
        """The layout ``<class>/<split>/*.jpg``, or None."""
        if len(names) < 2 or not all(self.splits.holds_splits(join(base, name)) for name in names):
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
        if self.splits.holds_splits(base):
            raise self._splits_within(base, names)
        for name in names:
            for path in self.tree.folders_below(join(base, name)):
                if self.splits.holds_splits(path):
                    raise self._splits_within(path, self.tree.subfolders(path))

    def _splits_within(self, path: str, inside: Sequence[str]) -> DataError:
        where = self.tree.path_of(path)
        return DataError(
            f"{where} can be read in two ways, for it holds {some(inside)}:\n"
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
            f"{self.tree.path_of(base)} can be read in two ways, for each of its folders holds {some(inner[0])}:\n"
            f"  as {len(names)} classes, {some(names)}: set data.source.class_folder to outer\n"
            f"  as {len(inner[0])} classes, {some(inner[0])}: set data.source.class_folder to inner"
        )
