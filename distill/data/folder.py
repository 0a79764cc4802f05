"""A folder of image files, in one of three shapes::

    root/train/<class>/*.jpg   root/val/…   root/test/…     declared splits (val and test may be missing; val is
                                                            also called valid or validation)
    root/<class>/*.jpg                                      one set, divided by test_fraction and val_fraction
    root/*.jpg                                              the same, without labels

Classes are the names of the folders, sorted. A class folder is searched to any depth. Hidden files and folders
(``.ipynb_checkpoints``, ``._image.jpg``) are ignored. A split may be a flat folder without labels. A folder ``train``
is a class if there are other folders beside it, but none for val or test.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from distill.data.base import UNLABELED, DataError, Sample, Samples, Source, Split
from distill.data.decode import EXTENSIONS, MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode
from distill.data.split import uniform

SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Folder(Source):
    """Image files on disk. Ids are paths relative to ``root``, with forward slashes.

    Without split folders, an image is in test if the hash of its id in [0, 1) is below ``test_fraction``, else in val
    if it is below ``test_fraction + val_fraction``. Adding a file moves no other file; the fractions hold on average.
    """

    class Settings(Source.Settings):
        type: Literal["folder"] = "folder"
        root: Path = Field(description="folder of the images, relative to the current folder")
        labels: bool = Field(True, description="false: subfolders are not classes")
        test_fraction: float = Field(0.0, ge=0, lt=1, description="fraction of images for test, without split folders")
        val_fraction: float = Field(0.0, ge=0, lt=1, description="fraction of images for val, without split folders")
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.root = settings.root
        if not self.root.is_dir():
            raise DataError(f"data.source.root: no folder {self.root} (looked in {Path.cwd()})")
        self._files: dict[Split, list[tuple[str, str | None]]] = {}
        self._folders = self._split_folders()
        if self._folders:
            if settings.test_fraction or settings.val_fraction:
                raise DataError(f"{self.root} has a train folder: leave test_fraction and val_fraction at 0")
            self._files = {name: self._list(folder) for name, folder in self._folders.items()}
        else:
            self._divide(self._list(self.root))
        self.has_split = frozenset(self._files)
        self.classes = self._common_classes()

    def split(self, name: Split) -> Samples:
        number = {label: index for index, label in enumerate(self.classes)}
        files = self._files[name]
        labels = [UNLABELED if label is None else number[label] for _, label in files]
        return FileSamples(self.root, [id for id, _ in files], labels, self.settings.pixel_limit)

    def _split_folders(self) -> dict[Split, Path]:
        """Split → its folder; empty if the root itself holds the classes."""
        present = {entry.name for entry in self.root.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        folders: dict[Split, Path] = {}
        for split, names in SPLIT_FOLDERS.items():
            if here := [name for name in names if name in present]:
                folders[split] = self.root / here[0]
        return folders if "train" in folders and (len(folders) > 1 or len(present) == 1) else {}

    def _list(self, folder: Path) -> list[tuple[str, str | None]]:
        """(id, class name or None) of each image of one split, sorted."""
        children = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        classes = [child for child in children if child.is_dir()] if self.settings.labels else []
        if not classes:
            unlabeled: list[tuple[str, str | None]] = [(id, None) for id in self._images(folder)]
            if not unlabeled:
                raise DataError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))})")
            return unlabeled
        stray = [child for child in children if child.is_file() and child.suffix.lower() in EXTENSIONS]
        if stray:
            raise DataError(f"{stray[0]} lies beside class folders ({classes[0].name}, …): which class is it?")
        labeled: list[tuple[str, str | None]] = []
        for child in classes:
            images = self._images(child)
            if not images:
                raise DataError(f"class folder {child} holds no images ({', '.join(sorted(EXTENSIONS))})")
            labeled += [(id, child.name) for id in images]
        return labeled

    def _images(self, folder: Path) -> list[str]:
        ids: list[str] = []
        for where, folders, files in os.walk(folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = Path(where).relative_to(self.root)
            ids += [
                (inside / name).as_posix()
                for name in files
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
            ]
        return sorted(ids)

    def _divide(self, files: list[tuple[str, str | None]]) -> None:
        test, val = self.settings.test_fraction, self.settings.val_fraction
        if test + val >= 1:
            raise DataError(f"test_fraction {test:g} + val_fraction {val:g} leaves nothing to train on")
        ranges: dict[Split, tuple[float, float]] = {
            "train": (test + val, 1),
            "val": (test, test + val),
            "test": (0, test),
        }
        for name, (low, high) in ranges.items():
            if high > low:
                self._files[name] = [file for file in files if low <= uniform(file[0], salt="folder") < high]

    def _common_classes(self) -> tuple[str, ...]:
        by_split = {name: {label for _, label in files if label is not None} for name, files in self._files.items()}
        if not self._folders:
            everything = set().union(*by_split.values())
            missing = sorted(everything - by_split["train"])
            if missing:
                raise DataError(f"{self.root}: the fractions leave no training image of class {missing[0]!r}")
            return tuple(sorted(everything))
        labeled = {name: labels for name, labels in by_split.items() if labels}
        if not labeled:
            return ()
        first, *others = labeled
        for other in others:
            for split, counterpart in ((first, other), (other, first)):
                only = sorted(labeled[split] - labeled[counterpart])
                if only:
                    raise DataError(
                        f"{self.root}: class {only[0]!r} is in {split} but not in {counterpart} ({len(only)} such)"
                    )
        return tuple(sorted(labeled[first]))


class FileSamples:
    """Image files below a root.

    Args:
        root: folder.
        ids: paths relative to ``root``, with forward slashes.
        labels: class indices, ``UNLABELED`` where a sample has none.
        pixel_limit: largest width × height.
    """

    def __init__(self, root: Path, ids: Sequence[str], labels: Sequence[int], pixel_limit: int):
        self.root, self.ids, self.labels, self.pixel_limit = root, ids, labels, pixel_limit

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        path = self.root / self.ids[index]
        return Sample(decode(path, str(path), self.pixel_limit), self.labels[index], self.ids[index])

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each file, for the fingerprint."""
        return [os.stat(self.root / id).st_size for id in self.ids]
