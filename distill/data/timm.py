"""timm's datasets, read by the readers of ``timm.data.create_dataset``: folders, tars, ``hfds/…``.

The splits of a folder are found as in the source ``folder``, and each image is read once, in all formats that this
package reads. timm's classes are the folders that hold the images.

The reader is used without timm's ``ImageDataset``, which replaces unreadable files by the next ones. Workers of this
source import timm, which the reader belongs to; workers of other sources do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distill.data.base import DataError, Sample, Samples, Source, Split
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode
from distill.data.depth import depth_of
from distill.data.formats import extensions
from distill.data.labels import LabelColumn, LabelSettings, read_labels
from distill.data.layout import understand
from distill.data.split_names import split_of, splits_of
from distill.data.tree import Tree, read_by_both


class Timm(Source):
    """The images that ``create_dataset(name, root, split=…)`` reads. Ids are ``<split>/<file name or index>``."""

    class Settings(LabelSettings):
        type: Literal["timm"] = "timm"
        name: str = Field("", description="timm's name: empty for a folder or tar, or hfds/<name>")
        root: Path | None = Field(None, description="folder or tar, relative to the current folder")
        splits: dict[Split, str] | None = Field(
            None, description="split → timm's name of it; default: of a folder, found by their names, else only train"
        )
        arguments: dict[str, Any] = Field({}, description="further arguments of create_dataset, such as class_map")
        bits: int | None = Field(
            None, ge=8, le=16, description="bits in use of 16-bit images; default: by the largest value of a sample"
        )
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        if settings.splits and "train" not in settings.splits:
            raise DataError("data.source.splits of a timm dataset must name train")
        if settings.root is not None and not settings.root.exists():
            raise DataError(f"data.source.root: no file or folder {settings.root} (looked in {Path.cwd()})")
        self._readers = self._open_all()
        self.has_split = frozenset(self._readers)
        self._names = {split: _file_names(reader) for split, reader in self._readers.items()}
        self._refuse_the_same_files()
        self.bits = settings.bits or self._bits_in_use()
        self.depth = depth_of(self.bits)
        columns = {split: [_column(reader)] for split, reader in self._readers.items()}
        where = f"timm dataset {settings.name or settings.root}"
        self.classes, self._labels = read_labels(columns, where, settings)

    def split(self, name: Split) -> Samples:
        names = self._names[name] or [f"{index:06d}" for index in range(len(self._readers[name]))]
        ids = [f"{name}/{file}" for file in names]
        limit = self.settings.pixel_limit
        return ReaderSamples(self._readers[name], ids, self._labels[name], limit, self.bits, self.channels, self.depth)

    def _open_all(self) -> dict[Split, Any]:
        """Split → its reader."""
        root, splits = self.settings.root, self.settings.splits
        if self.settings.name or root is None or not root.is_dir():
            return {split: self._open(name) for split, name in (splits or {"train": "train"}).items()}
        tree = Tree(root)
        folders = self._folders(tree)
        readers = {split: self._open(split, root / path) for split, path in folders.items()}
        paths = [[path for path, _ in reader.samples] for reader in readers.values()]
        kept, self.skipped = read_by_both(tree, list(folders.values()), paths, "timm")
        for reader, indices in zip(readers.values(), kept):
            self._keep(reader, indices)
        return readers

    def _folders(self, tree: Tree) -> dict[Split, str]:
        """Split → its folder below the root. Left to itself, timm reads the root if a split has no folder."""
        names = self.settings.splits
        if names is None:
            layout = understand(tree, class_folder="inner")
            self.reading = f"{tree.root}: {layout}"
            return layout.folders or {"train": layout.base}
        if not names:
            return {"train": ""}
        inside = tree.subfolders()
        meant = splits_of(inside)
        folders: dict[Split, str] = {}
        for split, name in names.items():
            path = name.partition("[")[0].strip("/")
            candidates = [each for each, its_split in meant.items() if its_split == split_of(path)]
            if tree.exists(path) and path not in ("", "."):
                folders[split] = path
            elif len(candidates) == 1:
                folders[split] = candidates[0]
            elif len(names) > 1 or meant:
                raise DataError(
                    f"data.source.splits.{split}: no folder {name} in {tree.root}, which holds {', '.join(inside)};"
                    " timm would read all of them"
                )
            else:
                folders[split] = ""
        return folders

    def _keep(self, reader: Any, indices: Sequence[int]) -> None:
        """Leave a folder's reader these of its images, and the classes that they have."""
        if len(indices) == len(reader.samples):
            return
        reader.samples = [reader.samples[index] for index in indices]
        if "class_map" not in self.settings.arguments:
            used = {number for _, number in reader.samples}
            names = [name for name, number in reader.class_to_idx.items() if number in used]
            number_of = {reader.class_to_idx[name]: index for index, name in enumerate(names)}
            reader.samples = [(path, number_of[number]) for path, number in reader.samples]
            reader.class_to_idx = {name: index for index, name in enumerate(names)}

    def _bits_in_use(self) -> int | None:
        names = self._names["train"]
        return None if names is None else bits_in_use(names, lambda index: _bytes_of(self._readers["train"], index))

    def _open(self, split: str, folder: Path | None = None) -> Any:
        """The reader of a split, by timm's name for it, or of a folder."""
        from timm.data import create_dataset

        given = folder or self.settings.root
        root = None if given is None else str(given)
        arguments = self.settings.arguments
        if folder is not None:  # timm's own list of formats is .png, .jpg, .jpeg
            arguments = {"input_key": ";".join(sorted(extensions())), **arguments, "search_split": False}
        try:
            dataset = create_dataset(self.settings.name, root=root, split=split, **arguments)
        except Exception as error:  # each reader raises other exceptions
            raise DataError(f"timm dataset {self.settings.name or root}, split {split!r}: {error}") from error
        reader = getattr(dataset, "reader", None)
        if reader is None or not hasattr(reader, "__getitem__"):
            other = "torchvision" if self.settings.name.lower().startswith("torch/") else "huggingface or folder"
            raise DataError(f"timm dataset {self.settings.name!r} cannot be indexed; use the source {other}")
        return reader

    def _refuse_the_same_files(self) -> None:
        """Raise ``DataError`` if two splits share a file: timm reads the whole root if a split has no folder."""
        seen: dict[str, str] = {}
        for split, reader in self._readers.items():
            if not self._names[split]:
                continue
            for index in range(len(reader)):
                file = reader.filename(index, absolute=True)
                if seen.setdefault(file, split) != split:
                    raise DataError(f"timm reads {file} for both {seen[file]} and {split}: {self.settings.splits}")


class ReaderSamples:
    """Samples of a timm reader.

    Args:
        reader: ``reader[index]`` is an open file and its target.
        ids: sample ids.
        labels: class indices, ``UNLABELED`` where a sample has none.
        pixel_limit: largest width × height.
        bits: bits in use of images of more than 8 bits.
        channels: of the decoded images.
        depth: bits of a value of the decoded images.
    """

    def __init__(
        self,
        reader: Any,
        ids: Sequence[str],
        labels: Sequence[int],
        pixel_limit: int,
        bits: int | None = None,
        channels: int = 3,
        depth: int = 8,
    ):
        self.reader, self.ids, self.labels = reader, ids, labels
        self.pixel_limit, self.bits, self.channels, self.depth = pixel_limit, bits, channels, depth

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        try:
            encoded = _bytes_of(self.reader, index)
        except OSError as error:
            raise DataError(f"{self.ids[index]}: cannot be read: {error}") from error
        image = decode(encoded, self.ids[index], self.pixel_limit, self.bits, self.channels, self.depth)
        return Sample(image, self.labels[index], self.ids[index])


def _bytes_of(reader: Any, index: int) -> bytes:
    with reader[index][0] as file:
        return file.read()


def _column(reader: Any) -> LabelColumn:
    targets = list(reader.iter_targets() if hasattr(reader, "iter_targets") else _opened_targets(reader))
    number_of: dict[str, int] = getattr(reader, "class_to_idx", None) or {}
    if sorted(number_of.values()) == list(range(len(number_of))):
        return LabelColumn(targets, sorted(number_of, key=number_of.__getitem__) or None)
    name_of = {number: name for name, number in number_of.items()}  # a class_map may count from 1
    return LabelColumn([name_of.get(target, target) for target in targets])


def _opened_targets(reader: Any) -> Iterator[Any]:
    """Targets of a reader that returns them only with an open file, which is not read."""
    for index in range(len(reader)):
        file, target, *_ = reader[index]
        file.close()
        yield target


def _file_names(reader: Any) -> list[str] | None:
    """Relative file names, or None if the reader has none that are unique."""
    names = [reader.filename(index) for index in range(len(reader))]
    usable = all(isinstance(name, str) and not Path(name).is_absolute() for name in names)
    return names if usable and len(set(names)) == len(names) else None
