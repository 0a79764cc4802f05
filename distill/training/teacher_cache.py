"""Keeps the teacher's outputs in a file, so that later students with the same teacher and views need not compute them.

The draws of a view depend only on (seed, epoch, view, sample id), so equal settings give equal views: a "stream" of
views. A row of the file is one sample in one epoch: row ``epoch · N + position``, N samples. Samples that come again in
an epoch (:class:`distill.data.order.Repeats`) have views of their own, and rows in a second file, ``repeats-R``, where
R is their largest number in an epoch: it depends on the batch size and the sampler, the first file does not.
``manifest.json`` beside the files describes the stream, and the folder is named by the manifest's hash: another
teacher, seed, dataset or augmentation of the teacher's views uses another cache.

Each row ends in a digest of its bytes, keyed by the manifest, the row's number and the sample. Only rows with the right
digest are used. A row that was never written, was written in part, was written by two processes at once, or is damaged
counts as missing. So no lock and no recovery are needed, and each rank writes its own rows. Rows are read through a
memory map and written by system calls, so that a full disk is an error that can be caught.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.order import Repeats
from distill.data.positions import Positions
from distill.files import write_atomic
from distill.models.features import Features
from distill.training.cache_rows import CacheError, RowLayout
from distill.yaml_tree import differences

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ROWS = "rows"
REPEATS = "repeats-{}"
FORMAT = 2
_DIGEST = 8
_NOWHERE = np.iinfo(np.int64).min
"""The number of a row that no file has space for."""


@dataclass(frozen=True)
class CachedRows:
    """The rows of a batch, some of which may be missing."""

    ids: np.ndarray
    """int64 [B], of the samples."""
    numbers: np.ndarray
    """int64 [B], numbers of the rows in the file; −1 − n for row n of the samples that come again."""
    rows: np.ndarray
    """[B] of the layout's dtype; undefined where a row is missing."""
    there: np.ndarray
    """bool [B], false where a row is missing."""
    context: bytes
    """Hash of the batch's ids if the outputs depend on the batch, else empty."""

    @property
    def complete(self) -> bool:
        """Whether no row is missing."""
        return bool(self.there.all())


class TeacherCache:
    """Opens the cache of one stream, and creates it if there is none.

    Args:
        output: the folder of all caches.
        stream: everything that the teacher's outputs depend on, as plain JSON; see :mod:`distill.training.cache_key`.
        layout: of a row.
        ids: names of the training samples.
        epochs: for which the file has space.
        by_batch: whether a sample's view depends on its batch (mixing); a row is then used only for the same batch.
        write: whether missing rows are added.
        repeats: the samples that come again in an epoch; None: none does.

    Raises:
        CacheError: the folder holds the cache of another stream, the disk lacks the space, or there is no cache and
            ``write`` is off. The text names the settings that differ, or the bytes that are missing.
    """

    def __init__(
        self,
        output: Path,
        stream: dict[str, Any],
        layout: RowLayout,
        ids: Sequence[str],
        epochs: int,
        by_batch: bool = False,
        write: bool = True,
        repeats: Repeats | None = None,
    ):
        manifest = {"format": FORMAT, "stream": stream, "row": layout.dtype.descr, "samples": len(ids)}
        self.manifest: dict[str, Any] = json.loads(json.dumps(manifest))
        self._key = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).digest()
        self.folder = output / f"cache-{self._key.hex()[:16]}"
        self.layout, self.epochs, self.by_batch, self.write = layout, epochs, by_batch, write
        self._positions, self._samples = Positions(ids), len(ids)
        self._repeats = repeats if repeats is not None and repeats.most else None
        self._row = np.dtype([("content", layout.dtype), ("digest", f"V{_DIGEST}")])
        self._pending: deque[tuple[CachedRows, dict[str, Tensor], torch.cuda.Event]] = deque()
        self.failure: CacheError | None = None
        """The error that stopped the writing of rows, if there was one."""
        self.is_new = not (self.folder / MANIFEST).is_file()
        self._open()

    @property
    def size(self) -> int:
        """Bytes of the rows of all epochs."""
        positions = self._samples if self._repeats is None else max(self._samples, self._repeats.positions)
        return self.epochs * positions * self._row.itemsize

    def describe(self) -> str:
        """One line: path and size; for a new cache also how it differs from the most similar existing one."""
        what = f"{self.folder}, {self.size:,} bytes for {self.epochs} epochs of {self._samples} samples"
        return f"new teacher cache: {what}{self._nearest_cache_note()}" if self.is_new else f"teacher cache: {what}"

    # --- Reading ------------------------------------------------------------------------------------------------------

    def find(self, ids: Tensor, epoch: int) -> CachedRows:
        """The rows of a batch in an epoch, counted from 0; ids [B] int64 on the CPU."""
        self._flush(wait=False)
        context = hashlib.blake2b(ids.sort()[0].numpy().tobytes(), digest_size=16).digest() if self.by_batch else b""
        numbers = self._numbers(ids, epoch)
        rows = np.zeros(len(ids), self._row)
        for mapped, at in ((self._mapped, numbers), (self._mapped_repeats, -1 - numbers)):
            within = (at >= 0) & (at < len(mapped))
            rows[within] = mapped[at[within]]
        digests = self._digests(rows["content"], ids.numpy(), numbers, context)
        there = np.fromiter((have == want for have, want in zip(rows["digest"].tolist(), digests)), bool, len(ids))
        return CachedRows(ids.numpy(), numbers, rows["content"], there, context)

    def _numbers(self, ids: Tensor, epoch: int) -> np.ndarray:
        """int64 [B], see ``CachedRows.numbers``."""
        positions, copies = self._positions.locate(ids)
        if (positions < 0).any():
            self._positions(ids)  # raises the error
        numbers, again = (positions + epoch * self._samples).numpy(), copies.numpy() > 0
        if again.any():
            numbers[again] = _NOWHERE if self._repeats is None else self._repeats_numbers(ids.numpy()[again], epoch)
        return numbers

    def has(self, ids: Tensor, epoch: int) -> bool:
        """Whether no row of a batch is missing; arguments as in :meth:`find`."""
        return self.find(ids, epoch).complete

    def _repeats_numbers(self, ids: np.ndarray, epoch: int) -> np.ndarray:
        """The same, for samples that come again in an epoch."""
        assert self._repeats is not None
        known = self._repeats(epoch)
        at = np.searchsorted(known, ids)
        return np.where(np.append(known, -1)[at] == ids, -1 - (epoch * self._repeats.most + at), _NOWHERE)

    def features(self, cached: CachedRows, device: torch.device) -> list[list[Features]]:
        """``features[n][v]`` (network n, view v) in fp32 on the device, from complete rows."""
        return self.layout.decode(self.layout.unpack(cached.rows, device))

    # --- Writing ------------------------------------------------------------------------------------------------------

    def keep(self, cached: CachedRows, live: Sequence[Sequence[Features]]) -> list[list[Features]]:
        """Add the missing rows, and return the outputs as they will be read from the cache.

        So a run that writes the cache, a resumed run, and a run that reads the cache all train on the same values.

        Args:
            cached: the rows of the batch, from :meth:`find`.
            live: the teacher's outputs for the batch, ``live[n][v]`` of network n and view v.

        Returns:
            ``features[n][v]`` in fp32 on the device of ``live``, rounded to the dtype of the cache.
        """
        fields = self.layout.encode(live)
        device = next(iter(fields.values())).device
        if cached.there.any():
            stored, there = self.layout.unpack(cached.rows, device), torch.from_numpy(cached.there)[:, None]
            there = there.to(device, non_blocking=True)
            fields = {name: torch.where(there, stored[name], values) for name, values in fields.items()}
        if self.write:
            if device.type == "cuda":  # they are written when they have arrived, so that the step does not wait
                copies = {name: values.to("cpu", non_blocking=True) for name, values in fields.items()}
                arrived = torch.cuda.Event()
                arrived.record()
                self._pending.append((cached, copies, arrived))
            else:
                self._add(cached, fields)
        return self.layout.decode(fields)

    def flush(self) -> None:
        """Write the rows whose copies from the device are still pending."""
        self._flush(wait=True)

    def _flush(self, wait: bool) -> None:
        while self._pending and (wait or self._pending[0][2].query()):
            cached, fields, arrived = self._pending.popleft()
            arrived.synchronize()
            if self.write:
                self._add(cached, fields)

    def _add(self, cached: CachedRows, fields: dict[str, Tensor]) -> None:
        new = np.flatnonzero(~cached.there)
        for name, values in fields.items():
            bad = ~values[new].isfinite().all(1)
            if bad.any():
                raise CacheError(
                    f"the teacher's {name.partition('.')[0]} are not finite in {self.layout.settings.dtype} for"
                    f" {int(bad.sum())} of {len(bad)} samples; float16 ends at 65504: try teacher.cache.dtype: float32"
                )
        rows = np.empty(len(new), self._row)
        rows["content"] = self.layout.pack(fields)[new]
        rows["digest"] = self._digests(rows["content"], cached.ids[new], cached.numbers[new], cached.context)
        try:
            for path, mapped, numbers in (
                (self.folder / ROWS, self._mapped, cached.numbers[new]),
                (self._repeats_file, self._mapped_repeats, -1 - cached.numbers[new]),
            ):
                within = (numbers >= 0) & (numbers < len(mapped))
                if not within.any():
                    continue
                with path.open("r+b", buffering=0) as file:
                    for number, row in zip(numbers[within].tolist(), rows[within]):
                        os.pwrite(file.fileno(), row.tobytes(), number * self._row.itemsize)
        except OSError as error:
            self.write = False
            self.failure = CacheError(f"{self.folder}: the teacher's cache is no longer written ({error.strerror})")
            logger.warning("%s; training continues without adding to it", self.failure)

    # --- The file -----------------------------------------------------------------------------------------------------

    def _digests(self, content: np.ndarray, ids: np.ndarray, numbers: np.ndarray, context: bytes) -> list[bytes]:
        data = np.ascontiguousarray(content).view(np.uint8).reshape(len(numbers), -1)
        options: dict[str, Any] = {"digest_size": _DIGEST, "key": self._key, "salt": context}
        places = np.stack([numbers, ids], 1)
        return [
            hashlib.blake2b(row.data, person=place.tobytes(), **options).digest() for place, row in zip(places, data)
        ]

    @property
    def _repeats_file(self) -> Path:
        return self.folder / REPEATS.format(self._repeats.most if self._repeats is not None else 0)

    def _open(self) -> None:
        path, rows = self.folder / MANIFEST, self.folder / ROWS
        if self.is_new and not self.write:
            raise CacheError(
                f"there is no cache for these views, and teacher.cache.write is off{self._nearest_cache_note()}"
            )
        try:
            if self.is_new:
                self._check_room()
                write_atomic(path, json.dumps(self.manifest, indent=2).encode())
            elif (there := _read(path)) != self.manifest:
                named = ", ".join(differences(there, self.manifest)) or "unreadable"
                raise CacheError(f"{path} does not match the name of its folder; delete it ({named})")
            if self.write:
                self._make_room(rows, self._samples)
                if self._repeats is not None:
                    self._make_room(self._repeats_file, self._repeats.most)
            self._map()
        except (OSError, ValueError) as error:  # ValueError: numpy maps neither an empty file nor a part of a row
            raise CacheError(f"{self.folder}: the teacher's cache cannot be used: {error}") from error

    def _map(self) -> None:
        self._mapped = np.memmap(self.folder / ROWS, self._row, "r")
        self._mapped_repeats = np.empty(0, self._row)
        if self._repeats is not None and self._repeats_file.is_file():
            self._mapped_repeats = np.memmap(self._repeats_file, self._row, "r")

    def _make_room(self, path: Path, rows: int) -> None:
        """Extend a file to ``rows`` rows for each epoch; what was not written yet takes no space on the disk."""
        size = self.epochs * rows * self._row.itemsize
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            if os.fstat(file.fileno()).st_size < size:
                self._check_room()
                # Unlike truncate, this cannot shorten a file that another run has just extended.
                os.pwrite(file.fileno(), b"\0", size - 1)

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's worker, which maps the files again."""
        return {**self.__dict__, "_mapped": None, "_mapped_repeats": None, "_pending": deque()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def _check_room(self) -> None:
        """Raise ``CacheError`` if the disk lacks space for the rows that the files do not have yet."""
        files = [path for path in (self.folder / ROWS, self._repeats_file) if path.is_file()]
        taken = sum(path.stat().st_blocks * 512 for path in files)
        there = next(path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists())
        free, wanted = shutil.disk_usage(there).free, self.size - taken
        if wanted > free:
            raise CacheError(
                f"{self.folder}: the teacher's cache needs {wanted:,} more bytes, {there} has {free:,} free; keep fewer"
                f" logits (teacher.cache.logits), train fewer epochs, or set output= to another disk"
            )

    def _nearest_cache_note(self) -> str:
        """The differences from the most similar cache in the same folder, for a message."""
        others = [path for path in self.folder.parent.glob(f"cache-*/{MANIFEST}") if path.parent != self.folder]
        different = {path.parent.name: differences(_read(path), self.manifest) for path in others}
        if not different:
            return ""
        name = min(different, key=lambda name: len(different[name]))
        return f"; {name} differs in {', '.join(different[name])}"


def _read(manifest: Path) -> Any:
    """The content of a manifest; None if it is damaged."""
    try:
        return json.loads(manifest.read_text())
    except ValueError:
        return None
