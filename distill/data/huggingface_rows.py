"""The rows of Hugging Face tables as samples."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.data.arrays import as_image
from distill.data.base import DataError, Sample, Split
from distill.data.decode import decode

if TYPE_CHECKING:
    from datasets import Dataset


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
