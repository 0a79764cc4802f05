"""The texts of an exported head's classes, and the map that made the head of them: ``classes.json``.

With ``classes.safetensors`` beside it (the map, and the text embedding of each class), a class can be added to the head
by its text, see ``distill classes``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from torch import Tensor

from distill.export.checksummed import Checksummed, read_checked, read_checksummed, write_checksummed
from distill.export.delta.io import read_delta
from distill.export.settings import DELTA
from distill.files import write_atomic
from distill.text.classes import ClassText

MANIFEST, TENSORS = "classes.json", "classes.safetensors"


class ExportedClass(Checksummed):
    """A class and its texts."""

    name: str
    texts: tuple[str, ...]
    """That were embedded."""
    definitions: tuple[str, ...] = ()
    source: str = ""
    """Of the definitions; empty: nothing is known about it."""
    sense: str = ""
    """Key of the sense that was chosen in the source."""


class ClassesManifest(Checksummed):
    """The content of ``classes.json``."""

    schema_version: Literal[1] = 1
    text: dict[str, Any]
    """Settings of the texts."""
    encoder: str
    """Identity of the text encoder."""
    scale: float
    """What the cosines are multiplied by."""
    sha256: str
    """Of ``classes.safetensors``."""
    delta: str
    """SHA-256 of the delta file with the head that was made of these texts."""
    classes: tuple[ExportedClass, ...]
    """In the order of the logits."""


def exported_class(text: ClassText, formats: tuple[str, ...], which: str) -> ExportedClass:
    """A class for the manifest.

    Args:
        text: what is known about it.
        formats: templates.
        which: ``names``, ``definitions`` or ``both``.
    """
    defined = {"names": (False,), "definitions": (True,), "both": (False, True)}[which]
    texts = dict.fromkeys(line for each in defined for line in text.texts(formats, each))
    used = text.definitions if which != "names" else ()
    return ExportedClass(
        name=text.name, texts=tuple(texts), definitions=used, source=text.source if used else "", sense=text.sense
    )


def write_classes(folder: Path, tensors: dict[str, Tensor], **about: Any) -> ClassesManifest:
    """Write both files.

    Args:
        folder: of the export.
        tensors: ``map`` [D, E], ``mean`` [D], ``center`` [E], ``embeddings`` [K, E].
        about: the other fields of :class:`ClassesManifest`.

    Returns:
        The content of ``classes.json``.
    """
    data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    manifest = ClassesManifest(sha256=write_atomic(folder / TENSORS, data), **about)
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def write_classes_again(source: Path, folder: Path) -> None:
    """Write the files of an export for another one of the same student; nothing where the export has none.

    Args:
        source: the export that has them.
        folder: of the other export, with its delta file.
    """
    if (source / MANIFEST).is_file():
        manifest, tensors = read_classes(source)
        about = {name: getattr(manifest, name) for name in ("text", "encoder", "scale", "classes")}
        write_classes(folder, tensors, **about, delta=read_delta(folder / DELTA)[0].sha256)


def read_classes(folder: Path) -> tuple[ClassesManifest, dict[str, Tensor]]:
    """Read and check both files.

    Raises:
        ExportError: a file is absent, or differs in any bit from what was written.
    """
    manifest = read_checksummed(folder / MANIFEST, ClassesManifest)
    return manifest, safetensors.torch.load(read_checked(folder, TENSORS, manifest.sha256))
