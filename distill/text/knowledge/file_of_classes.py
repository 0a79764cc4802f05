"""Shared by the sources that are one file: which names it has, and what it says about each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import ClassVar, Literal

from pydantic import Field

from distill.text.knowledge.base import AbsolutePath, Knowledge, Sense
from distill.text.names import TextError, folded, spoken


class FileOfClasses(Knowledge):
    """One file with texts about classes. A class may have several."""

    class Settings(Knowledge.Settings):
        path: AbsolutePath = Field(description="the file")
        meaning: Literal["descriptions", "senses"] = Field(
            "descriptions", description="of several texts about one name: all are about it, or each is another sense"
        )

    noun: ClassVar[str] = "file"
    settings: Settings

    def read(self, text: str) -> Iterable[tuple[str, str]]:
        """Pairs of a name and a text about it, from the content of the file. Raises ``ValueError``."""
        raise NotImplementedError

    def senses(self, name: str) -> Sequence[Sense]:
        key = folded(name)
        texts = self._texts.get(key, [])
        if self.settings.meaning == "senses":
            return [Sense(f"{key}/{number}", (spoken(name),), (text,)) for number, text in enumerate(texts)]
        return [Sense(key, (spoken(name),), tuple(texts))] if texts else []

    def fingerprint(self) -> str:
        return hashlib.sha256(self._content).hexdigest()[:16] + f" {self.settings.model_dump(exclude={'path'})}"

    @cached_property
    def _content(self) -> bytes:
        try:
            return self.settings.path.read_bytes()
        except OSError as error:
            raise TextError(f"knowledge: {self.settings.path}: {error.strerror}") from error

    @cached_property
    def _texts(self) -> dict[str, list[str]]:
        texts: dict[str, list[str]] = {}
        try:
            for name, given in self.read(self._content.decode("utf-8-sig")):
                if text := " ".join(given.split()):
                    texts.setdefault(folded(name), []).append(text)
        except ValueError as error:  # UnicodeDecodeError is one
            raise TextError(f"knowledge: {self.settings.path}: {error}") from error
        if not texts:
            raise TextError(f"knowledge: {self.settings.path} says nothing about any class")
        return texts
