"""Many tasks over one backbone in memory: a batch of images, each with the delta and the head of its own task."""

from __future__ import annotations

import copy
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.deltas.rank_settings import parse_bytes
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, check_identity, parts_of, read_delta, read_manifest
from distill.export.delta.loaded import LoadedDelta, Parts, digest, load_form, load_model, with_shared_tensors
from distill.export.delta.per_image import NoFormError, PerImageModel
from distill.models.fingerprint import fingerprint
from distill.models.hub import local_folder
from distill.models.timm_models import new_classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Entry:
    """A delta folder as it was when its task was added."""

    folder: Path
    digest: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is read, so that it is read once."""


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Let an ``ExportError`` that is raised inside name the task."""
    try:
        yield
    except ExportError as error:
        raise ExportError(f"task {name!r}: {error}") from error


class DeltaBank:
    """Delta files of one backbone, by the names of their tasks. Any deltas, ranks and numbers of classes.

    A file is registered by ``add`` and read when its task is first used. At most ``max_bytes`` of tasks stay in memory:
    those that were used last. Every time a file is read, its checksums are verified, and it must be the one that was
    added. All methods may be called by several threads at once. A batch finishes with what it began with, whatever is
    dropped or replaced meanwhile.

    Images of a batch share one pass, see :mod:`distill.export.delta.per_image`. Tasks whose deltas have no activation
    form (sparse, sign, dense and branch on large layers, structural deltas) get passes of their own after it, one for
    each task; a warning says so once for each reason.

    Example::

        bank = DeltaBank(backbone, max_bytes="2GB")
        bank.add("flowers", Path("runs/flowers/export/delta"))
        bank.add("birds", Path("runs/birds/export/delta"))
        flower, bird = bank.batch(images, ["flowers", "birds"])  # [2, C, H, W] → logits of each image's own classes

    Args:
        backbone: the timm model that the files were learned on, with any number of classes; it is copied, not changed.
            The copy is on its device and computes in its dtype.
        max_bytes: bytes of the deltas and heads that stay in memory, such as ``"500MB"``; None: all.
        allow_plugins: import delta classes outside this package that files name; importing runs code.
    """

    def __init__(self, backbone: nn.Module, *, max_bytes: int | str | None = None, allow_plugins: bool = False):
        self.max_bytes = None if max_bytes is None else parse_bytes(str(max_bytes))
        self.allow_plugins = allow_plugins
        self._backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self._identity = fingerprint(backbone_state(backbone, classifier_names(backbone)))
        shared = with_shared_tensors(self._backbone)
        if not classifier_names(shared):
            new_classifier(shared, 1)  # only its place is used: every task has a classifier of its own
            shared.eval().requires_grad_(False)
        self._shared = PerImageModel(shared, classifier_names(shared))
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._kept: OrderedDict[str, LoadedDelta] = OrderedDict()
        self._warned: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, in the order in which they were added."""
        with self._lock:
            return tuple(self._entries)

    @property
    def in_memory(self) -> tuple[str, ...]:
        """Names of the tasks that are in memory; the first was not used for longest."""
        with self._lock:
            return tuple(self._kept)

    @property
    def size(self) -> int:
        """Bytes of the tasks that are in memory, without the backbone."""
        with self._lock:
            return sum(loaded.size for loaded in self._kept.values())

    def add(self, name: str, folder: Path) -> None:
        """Register a delta file, by its folder or its name on the hub. Only its manifest is read.

        Raises:
            ExportError: the name is taken, or the manifest is damaged or of another backbone.
        """
        entry = self._registered(name, folder)
        with self._lock:
            if name in self._entries:
                raise ExportError(f"there is a task {name!r} already; replace or drop it")
            self._entries[name] = entry

    def replace(self, name: str, folder: Path) -> None:
        """Let a task have another delta file, which is read and checked first: if it fails, the old one stays.

        Raises:
            ExportError: there is no such task, or the file is damaged, of another backbone, or larger than
                ``max_bytes``.
        """
        with self._lock:
            self._entry(name)
        entry = self._registered(name, folder)
        loaded = self._read(name, entry)
        with self._lock:
            self._entry(name)
            self._entries[name] = entry
            self._keep(loaded)

    def drop(self, name: str) -> None:
        """Remove a task; its files stay.

        Raises:
            ExportError: there is no such task.
        """
        with self._lock:
            self._entry(name)
            del self._entries[name]
            self._kept.pop(name, None)

    def load(self, name: str) -> LoadedDelta:
        """A task's deltas and head, read and checked now if they are not in memory.

        A server that calls this for every request finds a bad file before it can spoil a batch, and can give the result
        to ``batch``.

        Raises:
            ExportError: there is no such task, or its file is damaged, was replaced since it was added, or is larger
                than ``max_bytes``; the text names both. No other task is affected.
        """
        while True:
            with self._lock:
                entry = self._entry(name)
                if (loaded := self._used(name)) is not None:
                    return loaded
            with entry.lock:
                with self._lock:
                    if self._entries.get(name) is not entry:
                        continue  # dropped or replaced
                    if (loaded := self._used(name)) is not None:
                        return loaded  # by another thread
                loaded = self._read(name, entry)
                with self._lock:
                    if self._entries.get(name) is entry:
                        self._keep(loaded)
                        return loaded

    @torch.no_grad()
    def batch(self, images: Tensor, names: Sequence[str | LoadedDelta]) -> list[Tensor]:
        """Logits of each image, by the delta and the head of its own task.

        They equal those of each task's merged model up to rounding. ``max_bytes`` does not count what a batch holds
        until it ends.

        Args:
            images: [N, C, H, W], as the tasks' preprocessing makes them, on the backbone's device.
            names: the task of each image, or what ``load`` gave for it; in any order, with repetitions.

        Returns:
            N tensors [K], K the number of classes of the image's task; none for an empty batch.

        Raises:
            ExportError: there is not one name for each image, there is no such task, or its file fails, see ``load``.
        """
        if len(images) != len(names):
            raise ExportError(f"{len(images)} images, but {len(names)} names of tasks")
        by_name = {name: self.load(name) for name in dict.fromkeys(n for n in names if isinstance(n, str))}
        tasks = [by_name[name] if isinstance(name, str) else name for name in names]
        logits: dict[int, Tensor] = {}
        together = [number for number, task in enumerate(tasks) if task.model is None]
        if together:
            part = images if len(together) == len(tasks) else images[together]
            logits |= zip(together, self._pass(part, [tasks[number] for number in together]))
        for task in dict.fromkeys(task for task in tasks if task.model is not None):
            numbers = [number for number, other in enumerate(tasks) if other is task]
            logits |= zip(numbers, task.model(images[numbers]))  # type: ignore[misc]
        return [logits[number] for number in range(len(tasks))]

    def model(self, name: str) -> nn.Module:
        """A task's network with its deltas, not merged, as ``load_delta`` gives it, over the bank's backbone in memory.

        It is read and checked now, and belongs to the caller. Its frozen tensors must not be changed; merging
        (``distill.merge``) gives it tensors of its own.

        Raises:
            ExportError: as ``load``.
        """
        with self._lock:
            entry = self._entry(name)
        manifest, parts = self._files(name, entry)
        with _naming(name):
            loaded = load_model(name, manifest, parts, entry.folder, self._backbone, self.allow_plugins)
        assert loaded.model is not None
        return loaded.model

    def _pass(self, images: Tensor, tasks: Sequence[LoadedDelta]) -> list[Tensor]:
        layers = dict.fromkeys(layer for task in dict.fromkeys(tasks) for layer in task.changes)
        logits = self._shared(images, {layer: [task.changes.get(layer) for task in tasks] for layer in layers})
        return [row[: task.num_classes] for row, task in zip(logits, tasks)]

    def _registered(self, name: str, folder: Path) -> _Entry:
        with _naming(name):
            folder = local_folder(folder).resolve()
            manifest = read_manifest(folder)
            check_identity(manifest, self._identity, folder)
        return _Entry(folder, digest(manifest))

    def _files(self, name: str, entry: _Entry) -> tuple[DeltaManifest, Parts]:
        with _naming(name):
            manifest, tensors = read_delta(entry.folder)
            if digest(manifest) != entry.digest:
                raise ExportError(f"{entry.folder}: not the file that was added; replace the task to serve this one")
            return manifest, parts_of(tensors, entry.folder)

    def _read(self, name: str, entry: _Entry) -> LoadedDelta:
        manifest, parts = self._files(name, entry)
        with _naming(name):
            try:
                loaded = load_form(name, manifest, parts, entry.folder, self._shared, self.allow_plugins)
            except NoFormError as error:
                why = str(error)
                loaded = load_model(name, manifest, parts, entry.folder, self._backbone, self.allow_plugins, why)
                self._warn(name, why)
            if self.max_bytes is not None and loaded.size > self.max_bytes:
                raise ExportError(
                    f"{entry.folder}: {loaded.size:,} bytes of deltas and head, more than max_bytes {self.max_bytes:,}"
                )
        return loaded

    def _warn(self, name: str, reason: str) -> None:
        with self._lock:
            first = reason not in self._warned
            self._warned.add(reason)
        if first:
            log.warning(
                "%s has no activation form: tasks with it, such as %r, get a pass of their own in every batch",
                reason,
                name,
            )

    # These need the lock.

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            known = list(self._entries)
            some = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise ExportError(f"no task {name!r}; there are {some or 'none'}")
        return self._entries[name]

    def _used(self, name: str) -> LoadedDelta | None:
        if name in self._kept:
            self._kept.move_to_end(name)
        return self._kept.get(name)

    def _keep(self, loaded: LoadedDelta) -> None:
        self._kept[loaded.name] = loaded
        self._kept.move_to_end(loaded.name)
        if self.max_bytes is not None:
            total = sum(each.size for each in self._kept.values())
            while total > self.max_bytes:
                _, evicted = self._kept.popitem(last=False)
                total -= evicted.size
