"""Hugging Face datasets: by their name on the Hub, or local Parquet files.

The ``datasets`` library memory-maps an Arrow copy of the data. It writes that copy and downloads to its own cache
(``~/.cache/huggingface``, or the folder in ``HF_HOME`` or ``cache_dir``), and nothing else. Images stay encoded until a
worker decodes them with the decoder of this package.

Without a network, the library retries for 23 s (measured with datasets 5.2). This source first sends one request to the
Hub. Without an answer, it reads the cache, and a dataset that is not in the cache is an error at once.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from augment.base import absolute
from distill.data.arrays import as_image
from distill.data.base import UNLABELED, DataError, Sample, Samples, Source, Split
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode
from distill.data.depth import depth_of
from distill.data.labels import LabelColumn, LabelSettings, mismatch, read_labels
from distill.data.layout import understand
from distill.data.tree import Tree

if TYPE_CHECKING:
    from datasets import Dataset

ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
HUB_PATIENCE = 5.0
"""Seconds to wait for the Hub's answer."""
LABEL_COLUMNS = ("label", "labels", "target", "class")
"""Names of a label column that is found without ``label_column``; the first that the data has."""


class HuggingFace(Source):
    """A dataset with an image column. Ids are ``<split>/<row>/<path of the image, if the data has one>``.

    Each Parquet file may have class names of its own, in an order of its own: labels are compared by name, see
    :mod:`distill.data.labels`.
    """

    class Settings(LabelSettings):
        type: Literal["huggingface"] = "huggingface"
        name: str | None = Field(None, description="name on the Hub, such as uoft-cs/cifar100, or a local folder")
        data_files: dict[Split, str] | None = Field(None, description="split → glob of local Parquet files")
        config: str | None = Field(None, description="the dataset's configuration, if it has several")
        revision: str | None = Field(None, description="branch, tag or commit on the Hub")
        splits: dict[Split, str] = Field({}, description="split → expression, such as 'train[:80%]'; default: by name")
        image_column: str | None = Field(
            None,
            description="column of images, or of arrays [H, W, C] (uint8, uint16, floats from 0 to 1); default: one",
        )
        label_column: str | None = Field(
            None, description="column of classes; default: the only one, or 'label', 'labels', 'target' or 'class'"
        )
        labels: bool = Field(True, description="false: ignore the labels")
        cache_dir: Path | None = Field(None, description="cache folder; default: the library's own")
        bits: int | None = Field(
            None, ge=8, le=16, description="bits in use of 16-bit images; default: by the largest value of a sample"
        )
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

        @field_validator("data_files")
        @classmethod
        def _absolute_patterns(cls, files: dict[Split, str] | None) -> dict[Split, str] | None:
            return files and {split: _absolute_pattern(pattern) for split, pattern in files.items()}

        @field_validator("name")
        @classmethod
        def _absolute_folder(cls, name: str | None) -> str | None:
            return str(absolute(name)) if name and absolute(name).is_dir() else name

        @model_validator(mode="after")
        def _one_origin(self) -> HuggingFace.Settings:
            if (self.name is None) == (self.data_files is None):
                raise ValueError("give either name (on the Hub) or data_files (local Parquet)")
            return self

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._tables = self._load()
        if "train" not in self._tables:
            raise DataError(f"{self._where}: no train split, only {sorted(self._tables)}; see data.source.splits")
        self.has_split = frozenset(self._tables)
        self._image = self._image_column()
        label = self._label_column() if settings.labels else None
        self._check_columns(self._image, "image_column")
        if label is None:
            rows = {split: sum(map(len, tables)) for split, tables in self._tables.items()}
            self.classes, self._labels = (), {split: [UNLABELED] * count for split, count in rows.items()}
        else:
            self._check_columns(label, "label_column")
            columns = {split: [_column(table, label) for table in tables] for split, tables in self._tables.items()}
            self.classes, self._labels = read_labels(columns, self._where, settings)

        train = self._rows("train", None)
        self.bits = settings.bits or bits_in_use(train.ids, train.stored)
        self.depth = depth_of(self.bits)

    def split(self, name: Split) -> Samples:
        return self._rows(name, self.bits)

    def _rows(self, name: Split, bits: int | None) -> RowSamples:
        labels, limit = self._labels[name], self.settings.pixel_limit
        return RowSamples(self._tables[name], self._image, labels, name, limit, bits, self.channels, self.depth)

    @property
    def _where(self) -> str:
        return self.settings.name or ", ".join((self.settings.data_files or {}).values())

    def _load(self) -> dict[Split, list[Dataset]]:
        """The tables of each split: one, or one for each run of Parquet files with the same columns."""
        import datasets

        options: dict[str, Any] = {"cache_dir": str(self.settings.cache_dir) if self.settings.cache_dir else None}
        if self.settings.data_files is not None:
            files = {split: _expand(split, pattern) for split, pattern in self.settings.data_files.items()}
            options |= {"path": "parquet", "data_files": files}
        else:
            options |= {"path": self.settings.name, "name": self.settings.config, "revision": self.settings.revision}
        local = self.settings.data_files is not None or Path(self.settings.name or "").is_dir()
        try:
            with _offline_unless_reachable(local), _quiet(local):
                if local and (apart := self._loaded_apart(options)):
                    return apart
                if self.settings.splits:
                    return {
                        split: [datasets.load_dataset(split=expression, **options)]
                        for split, expression in self.settings.splits.items()
                    }
                tables = datasets.load_dataset(**options)
        except DataError:
            raise
        except ConnectionError as error:
            raise DataError(
                f"{self._where}: the Hugging Face Hub cannot be reached, and the dataset is not in the cache. Load it"
                " once where there is a network and copy the cache (HF_HOME, or data.source.cache_dir), or download"
                f" its Parquet files and name them in data.source.data_files. ({error})"
            ) from error
        except Exception as error:  # the library's readers raise exceptions of many types
            raise DataError(f"{self._where}: {type(error).__name__}: {error}") from error
        splits = {split: [tables[name]] for split, name in _by_alias(tables).items()}
        if any(table.builder_name == "imagefolder" for table in tables.values()) and self.settings.name and local:
            self._check_folder(splits, Path(self.settings.name))
        return splits

    def _check_folder(self, splits: Mapping[Split, Sequence[Dataset]], root: Path) -> None:
        """Raise ``DataError`` if the library reads a local folder of images in another way than the folder source.

        It knows fewer names of splits: it trains on ``Testing/``, and leaves out ``Test/`` beside ``train/``.
        """
        use = f"use the source {{type: folder, root: {root}}}"
        try:
            tree = Tree(root)
            layout = understand(tree, class_folder="inner" if self.settings.labels else None)
        except DataError as error:
            raise DataError(f"{use}; {error}") from error
        walked, self.skipped = tree.walk([part.path for parts in layout.parts.values() for part in parts])
        rows = sum(len(table) for tables in splits.values() for table in tables)
        if set(layout.parts) != set(splits) or rows > sum(map(len, walked)):
            known = ", ".join(f"{split} with {sum(map(len, tables)):,} images" for split, tables in splits.items())
            raise DataError(
                f"the datasets library finds {known} in {root}, but {layout}, with {sum(map(len, walked)):,}: {use}"
            )

    def _loaded_apart(self, options: Mapping[str, Any]) -> dict[Split, list[Dataset]]:
        """Local Parquet files whose columns differ, each kind by itself; nothing if all are alike.

        The library reads all files by the columns of the first, so a number would get the name that it has there.
        """
        import datasets
        from datasets.packaged_modules.parquet.parquet import Parquet

        builder = datasets.load_dataset_builder(**options)
        if not isinstance(builder, Parquet) or builder.config.data_files is None:
            return {}
        known = {name: files for name, files in builder.config.data_files.items() if all(map(os.path.isfile, files))}
        columns = {file: _columns(file) for files in known.values() for file in files}
        first, *others = columns.values()
        if other := next((each for each in others if each != first), None):
            if self.settings.splits:
                different = next(name for name in {**first, **other} if first.get(name) != other.get(name))
                files = [next(file for file in columns if columns[file] == each) for each in (first, other)]
                its_types, other_types = (each.get(different, ("no such column",)) for each in (first, other))
                about = f"{self._where}: column {different!r} differs between files, which splits cannot read"
                raise mismatch(about, files[0], its_types, files[1], other_types)
            cache = {"cache_dir": options["cache_dir"]}
            return {
                split: [
                    datasets.load_dataset("parquet", data_files={"train": [*group]}, split="train", **cache)
                    for _, group in groupby(known[name], key=columns.__getitem__)
                ]
                for split, name in _by_alias(known).items()
            }
        return {}

    def _check_columns(self, column: str, key: str) -> None:
        for split, tables in self._tables.items():
            for table in tables:
                if column not in table.features:
                    raise DataError(
                        f"{self._where}: {split} has no column {column!r} ({key}), only {list(table.features)}"
                    )

    def _image_column(self) -> str:
        import datasets

        features = self._tables["train"][0].features
        given = self.settings.image_column
        if given is not None and given not in features:
            raise DataError(f"{self._where}: no column {given!r} (image_column), only {list(features)}")
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)] or [
            name for name, kind in features.items() if isinstance(kind, datasets.Array3D)
        ]
        if given is None and len(images) != 1:
            raise DataError(f"{self._where}: set image_column; the image columns are {images} of {list(features)}")
        return given or images[0]

    def _label_column(self) -> str | None:
        import datasets

        features = self._tables["train"][0].features
        given = self.settings.label_column
        if given is not None and given not in features:
            raise DataError(f"{self._where}: no column {given!r} (label_column), only {list(features)}")
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if given is None and len(classes) > 1:
            raise DataError(f"{self._where}: set label_column; the class columns are {classes}")
        return given or next(iter(classes), next((name for name in LABEL_COLUMNS if name in features), None))


class RowSamples:
    """Rows of memory-mapped tables; they are pickled as the names of their Arrow files.

    Args:
        tables: of the split, one after the other.
        column: of the images.
        labels: class indices, ``UNLABELED`` where a sample has none.
        split: name of the split, the first part of the ids.
        pixel_limit: largest width × height.
        bits: bits in use of images of more than 8 bits.
        channels: of the decoded images.
        depth: bits of a value of the decoded images.
    """

    def __init__(
        self,
        tables: Sequence[Dataset],
        column: str,
        labels: Sequence[int],
        split: Split,
        pixel_limit: int,
        bits: int | None = None,
        channels: int = 3,
        depth: int = 8,
    ):
        import datasets

        kind = tables[0].features[column]
        self.arrays = kind.dtype if isinstance(kind, datasets.Array3D) else None
        """Type of the values, if the images are arrays and not encoded files."""
        parts = [table.select_columns([column]) for table in tables]
        if not self.arrays:
            parts = [part.cast_column(column, datasets.Image(decode=False)) for part in parts]
        table = parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
        self.table = table.with_format("numpy") if self.arrays else table
        self.column, self.labels = column, labels
        self.pixel_limit, self.bits, self.channels, self.depth = pixel_limit, bits, channels, depth
        self.ids = [f"{split}/{row:06d}" + (f"/{path}" if path else "") for row, path in enumerate(self._paths())]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if self.arrays:
            array = as_image(self._array(index), self.ids[index], self.channels, self.bits, self.depth)
            return Sample(array, self.labels[index], self.ids[index])
        encoded, id = self.encoded(index), self.ids[index]
        if encoded is None:
            raise DataError(f"{id}: the row has no image")
        return Sample(
            decode(encoded, id, self.pixel_limit, self.bits, self.channels, self.depth), self.labels[index], id
        )

    def stored(self, index: int) -> np.ndarray | bytes | str | None:
        """The array of a row, or :meth:`encoded`."""
        return self._array(index) if self.arrays else self.encoded(index)

    def encoded(self, index: int) -> bytes | str | None:
        """The encoded image of a row or its path; None if the row has no image."""
        image = self.table[index][self.column]
        if image is None:
            return None
        return image["bytes"] if image["bytes"] is not None else image["path"]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each encoded image, 0 for an image in a separate file; for the fingerprint."""
        import pyarrow.compute as pc

        if self.arrays:
            return np.full(len(self), -1)
        return pc.fill_null(pc.binary_length(self._field("bytes")), 0).to_numpy()

    def _paths(self) -> Iterator[str | None]:
        """The paths of the images; of absolute paths, which differ between machines, only the file name."""
        for path in [None] * len(self.table) if self.arrays else self._field("path").to_pylist():
            yield os.path.basename(path) if path and os.path.isabs(path) else path

    def _array(self, index: int) -> np.ndarray:
        """An array of the table."""
        return np.asarray(self.table[index][self.column]).astype(self.arrays)  # the library reads integers as int64

    def _field(self, name: str) -> Any:
        import pyarrow.compute as pc

        return pc.struct_field(self.table.with_format("arrow")[:][self.column], name)


def _column(table: Dataset, name: str) -> LabelColumn:
    kind = table.features[name]
    return LabelColumn(table[name][:], getattr(kind, "names", None))


def _columns(file: str) -> dict[str, tuple[str, ...]]:
    """Column of a Parquet file → its class names, or its type."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(file)
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    columns = {}
    for field in schema:
        feature = features.get(field.name)
        names = feature.get("names") if isinstance(feature, dict) else None
        columns[field.name] = tuple(names or [str(field.type)])
    return columns


def _by_alias(named: Mapping[str, Any]) -> dict[Split, str]:
    """Split → the name that it has among ``named``, for those that are there."""
    names = {split: next((alias for alias in aliases if alias in named), None) for split, aliases in ALIASES.items()}
    return {split: name for split, name in names.items() if name is not None}


def _absolute_pattern(pattern: str) -> str:
    """The pattern below the current folder, whose own name is no pattern."""
    return os.path.join(glob.escape(os.getcwd()), os.path.expanduser(pattern))


def _expand(split: Split, pattern: str) -> list[str]:
    files = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise DataError(f"data.source.data_files.{split}: no file matches {pattern} (looked in {Path.cwd()})")
    return files


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """Disable progress bars for local files: they would disturb the run's own display."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    if local:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


@contextmanager
def _offline_unless_reachable(local: bool) -> Iterator[None]:
    """Within the block, the library uses only its cache if the Hub does not answer or is not needed."""
    import datasets.config
    import huggingface_hub.constants as hub
    from huggingface_hub.utils import get_session

    offline = local or hub.HF_HUB_OFFLINE
    if not offline:
        try:
            get_session().head(hub.ENDPOINT, timeout=HUB_PATIENCE)
        except Exception:  # whatever the reason for no answer, the cache may hold the dataset
            offline = True
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
