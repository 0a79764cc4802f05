"""timm's datasets, read by the readers of ``timm.data.create_dataset``: folders, tars, ``hfds/…``.

The reader is used without timm's ``ImageDataset``, which replaces unreadable files by the next ones. Workers of this
source import timm, which the reader belongs to; workers of other sources do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distill.data.base import DataError, Sample, Samples, Source, Split
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode
from distill.data.labels import LabelColumn, LabelSettings, read_labels


class Timm(Source):
    """The images that ``create_dataset(name, root, split=…)`` reads. Ids are ``<split>/<file name or index>``."""

    class Settings(LabelSettings):
        type: Literal["timm"] = "timm"
        name: str = Field("", description="timm's name: empty for a folder or tar, or hfds/<name>")
        root: Path | None = Field(None, description="folder or tar, relative to the current folder")
        splits: dict[Split, str] = Field({"train": "train"}, description="split → timm's name of it")
        arguments: dict[str, Any] = Field({}, description="further arguments of create_dataset, such as class_map")
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        if "train" not in settings.splits:
            raise DataError("data.source.splits of a timm dataset must name train")
        if settings.root is not None and not settings.root.exists():
            raise DataError(f"data.source.root: no file or folder {settings.root} (looked in {Path.cwd()})")
        self._readers = {split: self._open(name) for split, name in settings.splits.items()}
        self.has_split = frozenset(self._readers)
        self._names = {split: _file_names(reader) for split, reader in self._readers.items()}
        self._refuse_the_same_files()
        columns = {split: [_column(reader)] for split, reader in self._readers.items()}
        where = f"timm dataset {settings.name or settings.root}"
        self.classes, self._labels = read_labels(columns, where, settings)

    def split(self, name: Split) -> Samples:
        names = self._names[name] or [f"{index:06d}" for index in range(len(self._readers[name]))]
        ids = [f"{name}/{file}" for file in names]
        return ReaderSamples(self._readers[name], ids, self._labels[name], self.settings.pixel_limit)

    def _open(self, split: str) -> Any:
        from timm.data import create_dataset

        root = None if self.settings.root is None else str(self.settings.root)
        try:
            dataset = create_dataset(self.settings.name, root=root, split=split, **self.settings.arguments)
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
    """

    def __init__(self, reader: Any, ids: Sequence[str], labels: Sequence[int], pixel_limit: int):
        self.reader, self.ids, self.labels, self.pixel_limit = reader, ids, labels, pixel_limit

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        try:
            with self.reader[index][0] as file:
                encoded = file.read()
        except OSError as error:
            raise DataError(f"{self.ids[index]}: cannot be read: {error}") from error
        return Sample(decode(encoded, self.ids[index], self.pixel_limit), self.labels[index], self.ids[index])


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
