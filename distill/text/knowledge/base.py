"""The base class of sources of definitions: a name of a class gives its senses. Imports no torch."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

import augment.base
from augment.base import Component, absolute
from distill.text.names import folded

AbsolutePath = Annotated[Path, AfterValidator(absolute)]
"""A path of the config, which a run finds from any folder."""


@dataclass(frozen=True)
class Sense:
    """One meaning of a name.

    Args:
        key: of the meaning in its source, such as ``n02012849``.
        names: synonyms, the usual one first.
        definitions: texts about it, one or several.
    """

    key: str
    names: tuple[str, ...]
    definitions: tuple[str, ...]


class Knowledge(Component):
    """Knows senses of names.

    Class attributes:
        noun: what it is, for the report.
    """

    class Settings(augment.base.Settings):
        type: str

    noun: ClassVar[str] = "definitions"
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    def senses(self, name: str) -> Sequence[Sense]:
        """The senses of a class's name; empty if it is not known.

        Raises:
            TextError: the source cannot be read.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Changes when what it knows changes.

        By default with the settings, the content of each file that they name, and the file that defines the class.
        """
        digest = hashlib.sha256(repr(self.settings).encode())
        files = [value for _, value in self.settings if isinstance(value, Path)]
        if (source := inspect.getsourcefile(type(self))) is not None:
            files.append(Path(source))
        for file in files:
            if file.is_file():
                digest.update(file.read_bytes())
        return digest.hexdigest()[:16]


def by_name(senses: Sequence[Sense]) -> dict[str, list[Sense]]:
    """Folded name → its senses, in their order."""
    index: dict[str, list[Sense]] = {}
    for sense in senses:
        for name in dict.fromkeys(map(folded, sense.names)):
            index.setdefault(name, []).append(sense)
    return index


def made(settings: Any) -> Knowledge:
    """The source that these settings configure."""
    return settings.component(settings)
