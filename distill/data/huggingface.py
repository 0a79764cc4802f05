"""Hugging Face datasets: by their name on the Hub, or local Parquet files.

Their tables are loaded by :mod:`distill.data.huggingface_tables`, their rows read by
:mod:`distill.data.huggingface_rows`.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator, model_validator

from augment.base import absolute
from distill.data.base import UNLABELED, DataError, Samples, Source, Split
from distill.data.bits_in_use import bits_in_use
from distill.data.decode import MAX_PIXEL_LIMIT, PIXEL_LIMIT
from distill.data.depth import depth_of
from distill.data.huggingface_rows import RowSamples
from distill.data.huggingface_tables import load_tables
from distill.data.labels import LabelColumn, LabelSettings, read_labels

if TYPE_CHECKING:
    from datasets import Dataset

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
        self._tables, self.skipped = load_tables(settings, self._where)
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

    def column(self, split: Split, name: str) -> list[str]:
        self._check_columns(name, "column")
        return [text for table in self._tables[split] for text in _texts(table, name)]

    def _rows(self, name: Split, bits: int | None) -> RowSamples:
        labels, limit = self._labels[name], self.settings.pixel_limit
        return RowSamples(self._tables[name], self._image, labels, name, limit, bits, self.channels, self.depth)

    @property
    def _where(self) -> str:
        return self.settings.name or ", ".join((self.settings.data_files or {}).values())

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


def _texts(table: Dataset, name: str) -> list[str]:
    """The values of a column as texts, numbers that stand for names by these; empty for a missing value."""
    values, names = _column(table, name)
    if names is not None:
        values = [None if value is None or value < 0 else names[value] for value in values]
    return ["" if value is None else str(value) for value in values]


def _column(table: Dataset, name: str) -> LabelColumn:
    kind = table.features[name]
    return LabelColumn(table[name][:], getattr(kind, "names", None))


def _absolute_pattern(pattern: str) -> str:
    """The pattern below the current folder, whose own name is no pattern."""
    return os.path.join(glob.escape(os.getcwd()), os.path.expanduser(pattern))
