"""Hugging Face datasets: by their name on the Hub, or local Parquet files.

The ``datasets`` library memory-maps an Arrow copy of the data. It writes that copy and downloads to its own cache
(``~/.cache/huggingface``, or the folder in ``HF_HOME`` or ``cache_dir``), and nothing else. Images stay encoded until a
worker decodes them with the decoder of this package.

Without a network, the library retries for 23 s (measured with datasets 5.2). This source first sends one request to the
Hub. Without an answer, it reads the cache, and a dataset that is not in the cache is an error at once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from distill.data.base import UNLABELED, DataError, Sample, Samples, Source, Split
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT, decode

if TYPE_CHECKING:
    from datasets import Dataset

ALIASES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "dev"),
    "test": ("test",),
}
HUB_PATIENCE = 5.0
"""Seconds to wait for the Hub's answer."""


class HuggingFace(Source):
    """A dataset with an image column. Ids are ``<split>/<row>/<path of the image, if the data has one>``."""

    class Settings(Source.Settings):
        type: Literal["huggingface"] = "huggingface"
        name: str | None = Field(None, description="name on the Hub, such as uoft-cs/cifar100, or a local folder")
        data_files: dict[Split, str] | None = Field(None, description="split → glob of local Parquet files")
        config: str | None = Field(None, description="the dataset's configuration, if it has several")
        revision: str | None = Field(None, description="branch, tag or commit on the Hub")
        splits: dict[Split, str] = Field({}, description="split → expression, such as 'train[:80%]'; default: by name")
        image_column: str | None = Field(None, description="column of images; default: the only one")
        label_column: str | None = Field(None, description="column of classes; default: the only one, or 'label'")
        labels: bool = Field(True, description="false: ignore the labels")
        cache_dir: Path | None = Field(None, description="cache folder; default: the library's own")
        pixel_limit: int = Field(PIXEL_LIMIT, ge=1, le=MAX_PIXEL_LIMIT, description="largest width × height")

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
        self._label = self._label_column() if settings.labels else None
        self.classes = self._classes()

    def split(self, name: Split) -> Samples:
        table = self._tables[name]
        labels = [UNLABELED] * len(table) if self._label is None else self._numbers(table[self._label][:], name)
        return RowSamples(table, self._image, labels, name, self.settings.pixel_limit)

    @property
    def _where(self) -> str:
        return self.settings.name or ", ".join((self.settings.data_files or {}).values())

    def _load(self) -> dict[Split, Dataset]:
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
                if self.settings.splits:
                    return {
                        split: datasets.load_dataset(split=expression, **options)
                        for split, expression in self.settings.splits.items()
                    }
                tables = datasets.load_dataset(**options)
        except ConnectionError as error:
            raise DataError(
                f"{self._where}: the Hugging Face Hub cannot be reached, and the dataset is not in the cache. Load it"
                " once where there is a network and copy the cache (HF_HOME, or data.source.cache_dir), or download"
                f" its Parquet files and name them in data.source.data_files. ({error})"
            ) from error
        except Exception as error:  # the library's readers raise exceptions of many types
            raise DataError(f"{self._where}: {type(error).__name__}: {error}") from error
        names = {
            split: next((alias for alias in aliases if alias in tables), None) for split, aliases in ALIASES.items()
        }
        return {split: tables[name] for split, name in names.items() if name is not None}

    def _image_column(self) -> str:
        import datasets

        features = self._tables["train"].features
        given = self.settings.image_column
        if given is not None and given not in features:
            raise DataError(f"{self._where}: no column {given!r} (image_column), only {list(features)}")
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if given is None and len(images) != 1:
            raise DataError(f"{self._where}: set image_column; the image columns are {images} of {list(features)}")
        return given or images[0]

    def _label_column(self) -> str | None:
        import datasets

        features = self._tables["train"].features
        given = self.settings.label_column
        if given is not None and given not in features:
            raise DataError(f"{self._where}: no column {given!r} (label_column), only {list(features)}")
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if given is None and len(classes) > 1:
            raise DataError(f"{self._where}: set label_column; the class columns are {classes}")
        return given or next(iter(classes), "label" if "label" in features else None)

    def _classes(self) -> tuple[str, ...]:
        if self._label is None:
            return ()
        kind = self._tables["train"].features[self._label]
        if getattr(kind, "names", None):
            return tuple(kind.names)
        values = {value for value in self._tables["train"][self._label][:] if value is not None}
        if all(isinstance(value, str) for value in values):
            return tuple(sorted(values))
        if all(isinstance(value, int) for value in values):
            return tuple(str(number) for number in range(max(values) + 1))
        raise DataError(f"{self._where}: label_column {self._label!r} holds neither class numbers nor names")

    def _numbers(self, values: Sequence[Any], split: Split) -> list[int]:
        """Class numbers of a split; a missing value means no label."""
        number = {label: index for index, label in enumerate(self.classes)}
        labels = []
        for row, value in enumerate(values):
            if isinstance(value, str) and value not in number:
                raise DataError(
                    f"{self._where}: row {row} of {split} has the label {value!r}, which no row of train has"
                )
            labels.append(UNLABELED if value is None else number[value] if isinstance(value, str) else int(value))
        return labels


class RowSamples:
    """Rows of a memory-mapped table; it is pickled as the names of its Arrow files.

    Args:
        table: of the split.
        column: of the images.
        labels: class indices, ``UNLABELED`` where a sample has none.
        split: name of the split, the first part of the ids.
        pixel_limit: largest width × height.
    """

    def __init__(self, table: Dataset, column: str, labels: Sequence[int], split: Split, pixel_limit: int):
        import datasets

        table = table.select_columns([column])
        self.table = table.cast_column(column, datasets.Image(decode=False))
        self.column, self.labels, self.pixel_limit = column, labels, pixel_limit
        self.ids = [f"{split}/{row:06d}" + (f"/{path}" if path else "") for row, path in enumerate(self._paths())]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        image, id = self.table[index][self.column], self.ids[index]
        encoded = image["bytes"] if image["bytes"] is not None else image["path"]
        if encoded is None:
            raise DataError(f"{id}: the row has no image")
        return Sample(decode(encoded, id, self.pixel_limit), self.labels[index], id)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes of each encoded image, 0 for an image in a separate file; for the fingerprint."""
        import pyarrow.compute as pc

        return pc.fill_null(pc.binary_length(self._field("bytes")), 0).to_numpy()

    def _paths(self) -> Iterator[str | None]:
        """The paths of the images; of absolute paths, which differ between machines, only the file name."""
        for path in self._field("path").to_pylist():
            yield os.path.basename(path) if path and os.path.isabs(path) else path

    def _field(self, name: str) -> Any:
        import pyarrow.compute as pc

        return pc.struct_field(self.table.with_format("arrow")[:][self.column], name)


def _expand(split: Split, pattern: str) -> list[str]:
    files = sorted(glob.glob(pattern, recursive=True))
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
