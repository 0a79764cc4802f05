"""The synsets that come with timm: names and definitions of 21,844 things that pictures show, from WordNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import ClassVar, Literal

from distill.text.knowledge.base import Knowledge, Sense, by_name
from distill.text.names import TextError, folded, is_synset


class TimmKnowledge(Knowledge):
    """timm's ``data/_info``: lemmas and definitions. Licenses: Apache-2.0 and WordNet's.

    It has the senses of ImageNet-21k alone, so *crane* is a bird or a machine there, and no writer. A class that is
    named by its WordNet id has that sense.
    """

    class Settings(Knowledge.Settings):
        type: Literal["timm"] = "timm"

    noun: ClassVar[str] = "timm's synsets"

    def senses(self, name: str) -> Sequence[Sense]:
        if is_synset(name):
            sense = self.sense(name)
            return () if sense is None else (sense,)
        return _index().get(folded(name), ())

    def sense(self, key: str) -> Sense | None:
        """The sense with a WordNet id; None if timm does not know it."""
        return _synsets().get(key)

    def fingerprint(self) -> str:
        return f"timm {version('timm')}"


@cache
def _synsets() -> dict[str, Sense]:
    lemmas, definitions = _table("lemma"), _table("definition")
    return {key: Sense(key, tuple(text.split(", ")), (definitions[key],)) for key, text in lemmas.items()}


@cache
def _index() -> dict[str, list[Sense]]:
    return by_name([*_synsets().values()])


def _table(what: str) -> dict[str, str]:
    path = files("timm") / "data" / "_info" / f"imagenet_synset_to_{what}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TextError(f"this version of timm has no {path.name}, so it has no definitions: {error}") from error
    return dict(line.split("\t", 1) for line in lines if "\t" in line)
