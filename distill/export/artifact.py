"""Artifacts: the files of an exported program in a folder, with one checksummed manifest over all of them.

The folder is written under a temporary name and renamed when it is complete, so an interrupted export, a full disk or
two exports at once leave no mixture. It is read into memory and checked before any loader sees a byte. This module does
not import torch.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from augment.base import Settings
from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.manifest import Preprocessing, Result
from distill.files import sha256_of

MANIFEST, CARD = "manifest.json", "README.md"
_ABANDONED = 86_400.0
"""Seconds after which the temporary folder of an export that was killed is removed by the next one."""


class FileEntry(Settings):
    """A file of an artifact."""

    sha256: str
    bytes: int


class ProgramInput(Settings):
    """The input of an exported program. Height and width are fixed."""

    dtype: Literal["float32", "uint8"]
    """``float32``: normalized. ``uint8``: pixels, normalized inside the program."""
    layout: Literal["NCHW", "NHWC"]
    channels: int
    height: int
    width: int
    batch: int | None
    """Fixed number of images; None: any."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image, in the layout."""
        sizes = {"C": self.channels, "H": self.height, "W": self.width}
        return tuple(sizes[axis] for axis in self.layout[1:])  # type: ignore[return-value]

    def __str__(self) -> str:
        axes = (str(self.batch or "N"), *map(str, self.shape))
        return f"[{', '.join(axes)}] {self.dtype} ({self.layout}{', normalized' if self.dtype == 'float32' else ''})"


class ProgramManifest(Checksummed):
    """The content of an artifact's ``manifest.json``."""

    schema_version: Literal[1] = 1
    target: dict[str, Any]
    """Settings of the export target that wrote it; ``type`` is the format."""
    files: dict[str, FileEntry]
    """Path in the folder, with ``/`` → SHA-256 and size, of every file but the manifest."""
    model: str
    """SHA-256 of the tensors of the live model."""
    architecture: str
    origin: str
    """Where the backbone's weights came from."""
    packages: dict[str, str]
    """Package → version that wrote the files."""
    input: ProgramInput
    classes: int
    """Number of logits."""
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing
    results: tuple[Result, ...] = ()
    opset: int | None = None
    """Of ONNX."""
    options: dict[str, str] = Field(default_factory=dict)
    """Options of the session that the verified numbers need; ``distill.export.open`` sets them."""
    machine: dict[str, bool | str] = Field(default_factory=dict)
    """Facts about the processor on which the results depend."""
    calibration: tuple[str, ...] = ()
    """Ids of the training images that the quantization was calibrated on."""


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → installed version."""
    return {package: metadata.version(package) for package in sorted(packages)}


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which takes its place when the block ends without an error.

    Args:
        folder: it may exist, and is replaced as a whole.

    Yields:
        The folder to write to; after an error it is removed, and ``folder`` is as it was.

    Raises:
        ExportError: a file cannot be written, such as on a full disk.
    """
    folder = folder.absolute()
    prefix = f".{folder.name}."
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{prefix}*.tmp"):
            with suppress(FileNotFoundError):  # another export has just finished
                if time.time() - old.stat().st_mtime > _ABANDONED:
                    shutil.rmtree(old, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=prefix, suffix=".tmp"))
        try:
            written = temporary / folder.name
            written.mkdir()
            yield written
            _flush(written)
            _replace(written, folder, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be written, and is as it was: {error.strerror or error}") from error


def _flush(folder: Path) -> None:
    """Give all files the usual permissions, and flush them to the disk."""
    for path in _files(folder):
        path.chmod(0o644)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(written: Path, folder: Path, temporary: Path) -> None:
    """Rename; what another export puts there in between is replaced too."""
    for number in range(100):
        if folder.is_dir():
            with suppress(FileNotFoundError):  # another export has just moved it away
                folder.rename(temporary / f"old-{number}")
        try:
            written.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    raise ExportError(f"{folder}: other exports replace it all the time")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_manifest(folder: Path, **fields: Any) -> ProgramManifest:
    """Write the manifest over all files of a folder.

    Args:
        folder: with its complete files.
        fields: of :class:`ProgramManifest`, but ``files``.

    Returns:
        The content.
    """
    entries = {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)
        for path in _files(folder)
    }
    manifest = ProgramManifest(files=entries, **fields)
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def read_artifact(folder: Path) -> tuple[ProgramManifest, Mapping[str, bytes]]:
    """Read an artifact.

    Args:
        folder: with a ``manifest.json``.

    Returns:
        The manifest, and path → bytes of all its files. Files that it does not name are not read.

    Raises:
        ExportError: a file is absent, leads out of the folder, or differs in any bit.
    """
    folder = Path(folder)
    manifest = read_checksummed(folder / MANIFEST, ProgramManifest)
    files = {}
    for name, entry in manifest.files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ExportError(f"{folder / name}: leads out of its folder")
        if not (folder / path.parent).resolve().is_relative_to(folder.resolve()):
            raise ExportError(f"{folder / name}: leads out of its folder")
        files[name] = read_checked(folder / path.parent, path.name, entry.sha256)
    return manifest, files


@contextmanager
def as_files(files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with checked files, for loaders that read only paths."""
    with tempfile.TemporaryDirectory(prefix="distill-") as name:
        for path, data in files.items():
            place = Path(name) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        yield Path(name)
