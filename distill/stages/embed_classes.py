"""The embeddings of the texts of the data's classes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from distill.files import write_atomic
from distill.report.items import Item
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Stage, StageError
from distill.run.teacher import text_store
from distill.run.trial import trying
from distill.stages.text_items import coverage_items
from distill.text.classes import ClassText, class_texts, embed_classes, fingerprints
from distill.text.settings import TextSettings

TEXTS, TENSORS = "texts.json", "embeddings.safetensors"


@dataclass(frozen=True)
class EmbeddedClasses:
    """The texts of classes, and their embeddings.

    Args:
        texts: of each class.
        embeddings: variant → [K, E]: ``names``, ``definitions``, ``both``, or ``shuffled``.
    """

    texts: tuple[ClassText, ...]
    embeddings: Mapping[str, Tensor]


@dataclass(frozen=True)
class EmbedClasses(Stage[EmbeddedClasses]):
    """Finds out what is known about the classes, and embeds their texts.

    Args:
        settings: encoder, templates, knowledge.
        variants: which texts; ``shuffled`` has each class with the definitions of another one.
    """

    settings: TextSettings
    variants: tuple[str, ...]

    def check(self, context: RunContext) -> EmbeddedClasses:
        """Embed the texts, which are kept for the run. A resumed run that has them needs no encoder."""
        if len(context.data.classes) < 2:
            raise StageError(f"{self.name}: texts are of classes, and the data has {len(context.data.classes)}")
        with trying(f"{self.name}: the texts of the classes"):
            return self._made(context)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {
            "text": self.settings.model_dump(mode="json"),
            "fingerprints": fingerprints(self.settings),
            "variants": self.variants,
            "classes": list(context.data.classes),
        }

    def run(self, context: RunContext, folder: Path) -> EmbeddedClasses:
        made = self._made(context)
        if is_first_rank():
            write_atomic(folder / TENSORS, safetensors.torch.save(dict(made.embeddings)))
            write_atomic(folder / TEXTS, json.dumps([asdict(each) for each in made.texts], indent=1).encode())
        return made

    def load(self, context: RunContext, folder: Path) -> EmbeddedClasses:
        entries = json.loads((folder / TEXTS).read_text())
        texts = tuple(ClassText(**{**entry, "definitions": tuple(entry["definitions"])}) for entry in entries)
        return EmbeddedClasses(texts, safetensors.torch.load((folder / TENSORS).read_bytes()))

    def report(self, context: RunContext, output: EmbeddedClasses) -> Iterable[Item]:
        return coverage_items(output.texts)

    def _made(self, context: RunContext) -> EmbeddedClasses:
        store = text_store(context)
        texts = class_texts(context.data.classes, self.settings, store, "the data")
        embeddings = {}
        for variant in self.variants:
            own, which = (shuffled(texts), self.settings.texts) if variant == "shuffled" else (texts, variant)
            embeddings[variant] = embed_classes(own, self.settings, store, which)
        return EmbeddedClasses(texts, embeddings)


def shuffled(texts: tuple[ClassText, ...]) -> tuple[ClassText, ...]:
    """Each class that something is known about, with the definitions of the next one of them."""
    known = [number for number, each in enumerate(texts) if each.definitions]
    others = dict(zip(known, [*known[1:], *known[:1]]))
    return tuple(
        replace(each, definitions=texts[others[number]].definitions) if number in others else each
        for number, each in enumerate(texts)
    )
