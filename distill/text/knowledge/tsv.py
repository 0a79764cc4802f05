"""Definitions in a table: ``name``, a tab, and a text about it in each line; or the files of K-LITE."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from distill.text.knowledge.file_of_classes import FileOfClasses


class TsvKnowledge(FileOfClasses):
    """A TSV file. A line is ``name<TAB>text``, with further texts in further columns or further lines.

    Lines that begin with ``#`` are left out. K-LITE's files are a JSON list of objects with ``classname``; ``fields``
    names what is read of each, such as ``def_wn``, ``def_wiki`` or ``gpt3``.
    """

    class Settings(FileOfClasses.Settings):
        type: Literal["tsv"] = "tsv"
        fields: tuple[str, ...] = Field((), description="K-LITE's files: what is read of each class; default: all")

    settings: Settings

    def read(self, text: str) -> Iterable[tuple[str, str]]:
        if text.lstrip().startswith("["):
            yield from self._objects(json.loads(text))
            return
        rows = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
        for number, row in enumerate(rows, 1):
            if not row or row[0].startswith("#"):
                continue
            if len(row) < 2:
                raise ValueError(f"line {number} has no tab between a name and a text")
            yield from ((row[0], column) for column in row[1:])

    def _objects(self, entries: object) -> Iterable[tuple[str, str]]:
        if not isinstance(entries, list) or not all(isinstance(e, dict) and "classname" in e for e in entries):
            raise ValueError("expected a JSON list of objects with classname")
        known = sorted({field for entry in entries for field in entry} - {"classname", "path_wn"})
        if unknown := [field for field in self.settings.fields if field not in known]:
            raise ValueError(f"has no field {unknown[0]!r}, only {', '.join(known)}")
        for entry in entries:
            for field in self.settings.fields or known:
                texts = entry.get(field) or ()
                yield from ((entry["classname"], each) for each in ([texts] if isinstance(texts, str) else texts))
