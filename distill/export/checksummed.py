"""JSON manifests with a checksum of their own text, and files whose SHA-256 a manifest gives.

The checksums detect damage. They do not prove who wrote a file: a file that is changed on purpose can get a new
checksum. To detect that, compare its SHA-256 with one from a trusted source.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from augment.base import UserError
from distill.files import write_atomic


class ExportError(UserError, ValueError):
    """An exported file is damaged, of another kind, or does not fit; the text names it and what was expected."""


class Checksummed(BaseModel):
    """A manifest. Its file has the key ``seal``, the SHA-256 of the text without that line."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Checksummed)


def write_checksummed(path: Path, manifest: Checksummed) -> str:
    """Write a manifest with its seal; returns the SHA-256 of the file."""
    return write_atomic(path, _render(manifest.model_dump(mode="json")))


def read_checksummed(path: Path, kind: type[M]) -> M:
    """Read a manifest.

    Raises:
        ExportError: the file is absent, differs in any bit from what was written, or is not of this kind.
    """
    raw = read_inside(path.parent, path.name)
    try:
        content = json.loads(raw)
        content.pop("seal")
        rendered = _render(content)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ExportError(f"{path}: damaged, or not a manifest with a seal") from error
    if raw != rendered:
        raise ExportError(f"{path}: damaged, its text does not match its seal")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ExportError(f"{path}: not a {kind.__name__} that this version reads: {error}") from error


def read_inside(folder: Path, name: str) -> bytes:
    """The bytes of ``folder/name``; ``name`` must be a file in the folder, not a path or a link to outside."""
    path = folder / name
    if Path(name).name != name or path.resolve().parent not in _inside(folder.resolve()):
        raise ExportError(f"{path}: leads out of its folder")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror})") from error


def _inside(folder: Path) -> tuple[Path, ...]:
    """The folders that files of a folder may be in: itself, and the store of a repository in the cache of the hub.

    There, ``snapshots/COMMIT`` holds links to ``blobs``.
    """
    in_cache = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return (folder, folder.parent.parent / "blobs") if in_cache else (folder,)


def read_checked(folder: Path, name: str, sha256: str) -> bytes:
    """Read a file whose SHA-256 a manifest gives; the bytes are checked before anything parses them.

    Args:
        folder: of the manifest.
        name: of a file in it.
        sha256: what the manifest gives, in hexadecimal digits.

    Returns:
        The bytes.

    Raises:
        ExportError: the file cannot be read, is outside the folder, or has another SHA-256.
    """
    data = read_inside(folder, name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ExportError(f"{folder / name}: damaged or replaced, its SHA-256 is not the one in the manifest")
    return data


def _render(content: dict[str, Any]) -> bytes:
    def text(fields: dict[str, Any]) -> str:
        return json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    seal = hashlib.sha256(text(content).encode()).hexdigest()
    return text({"seal": seal, **content}).encode()
