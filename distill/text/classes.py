"""The texts of classes: which sense of each name is meant, what is known about it, and the embeddings of both.

Shape suffixes: K classes, N texts, E width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.text.embeddings import embed
from distill.text.knowledge.base import Knowledge, Sense, made
from distill.text.names import check_names, folded, spoken
from distill.text.settings import TextSettings

NEIGHBORS = 10
"""Classes that the sense of a name is compared with: those that fit it best."""
RANK = 0.03
"""Cosine that a sense loses for each synonym that stands before the name: *can* is the fourth name of a toilet."""


@dataclass(frozen=True)
class ClassText:
    """A class and what is known about it.

    Args:
        name: as the data has it.
        definitions: texts about it; empty: nothing is known, and its texts are those of its name.
        source: where they are from.
        senses: number of senses that the name has there.
        sense: key of the one that was chosen; empty if there are none, or all were taken.
        part: the last words of the name, if these are known and the whole is not; empty otherwise.
    """

    name: str
    definitions: tuple[str, ...] = ()
    source: str = ""
    senses: int = 0
    sense: str = ""
    part: str = ""

    @property
    def spoken(self) -> str:
        """The name as texts have it."""
        return spoken(self.name)

    def texts(self, formats: Sequence[str], defined: bool) -> list[str]:
        """Its texts.

        Args:
            formats: templates.
            defined: whether the texts have the definitions, where there are some.
        """
        named = [template.format(self.spoken) for template in formats]
        if not (defined and self.definitions):
            return named
        return [f"{text} ; {self.spoken} , {definition}" for definition in self.definitions for text in named]


def class_texts(names: Sequence[str], settings: TextSettings, store: Path | None, key: str) -> tuple[ClassText, ...]:
    """What is known about classes.

    With ``sense: context``, a name with several senses gets the one whose definition is most similar to the other
    classes: the mean cosine with the ten nearest of them, each by its name and, if it has one sense only, its
    definition, minus 0.03 for each synonym that stands before the name. The number of the sense in WordNet, which is by
    frequency in texts, is not read.

    Args:
        names: of the classes.
        settings: knowledge, and how a sense is chosen.
        store: folder of embeddings.
        key: what the names are of, for errors.

    Returns:
        One for each name.

    Raises:
        TextError: an empty or repeated name, or knowledge that cannot be read.
    """
    check_names(names, key)
    sources = [made(entry) for entry in settings.knowledge]
    known = [_known(name, sources, settings.parts_of_names) for name in names]
    chosen: dict[int, Sense] = {}
    several = [number for number, each in enumerate(known) if len(each.senses) > 1]
    if settings.sense == "first":
        chosen = {number: known[number].senses[0] for number in several}
    elif settings.sense == "context" and several:
        chosen = dict(zip(several, _by_context(names, known, several, settings, store)))
    texts = []
    for number, (name, each) in enumerate(zip(names, known)):
        taken = [chosen[number]] if number in chosen else each.senses
        definitions = tuple(dict.fromkeys(text for sense in taken for text in sense.definitions))
        sense = taken[0].key if len(taken) == 1 else ""
        texts.append(ClassText(name, definitions, each.source, len(each.senses), sense, each.part))
    return tuple(texts)


def embed_classes(
    texts: Sequence[ClassText], settings: TextSettings, store: Path | None, which: str | None = None
) -> Tensor:
    """Embeddings [K, E] of classes, normalized.

    Args:
        texts: of the classes.
        settings: encoder and templates.
        store: folder of embeddings.
        which: ``names``, ``definitions`` or ``both``; None: as the settings say.

    Returns:
        One row for each class.
    """
    which = which or settings.texts
    parts = {"names": (False,), "definitions": (True,), "both": (False, True)}[which]
    groups = [each.texts(settings.formats, defined) for defined in parts for each in texts]
    flat_NE = embed(settings.encoder, [text for group in groups for text in group], store)
    means = [F.normalize(own.mean(0), dim=0) for own in flat_NE.split([len(group) for group in groups])]
    return F.normalize(torch.stack(means).unflatten(0, (len(parts), len(texts))).mean(0), dim=1)


def coverage(texts: Sequence[ClassText]) -> dict[str, int]:
    """Source of definitions → number of classes, the most first; ``""``: those that it is not known about."""
    counts: dict[str, int] = {}
    for each in texts:
        counts[each.source] = counts.get(each.source, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (item[0] == "", -item[1])))


def fingerprints(settings: TextSettings) -> list[str]:
    """Change when the texts or their embeddings change: of the encoder and of each source of knowledge."""
    from distill.text.encoders.base import component_of

    return [
        component_of(settings.encoder).identity(settings.encoder),
        *(made(entry).fingerprint() for entry in settings.knowledge),
    ]


@dataclass(frozen=True)
class _Known:
    """The senses of a name in the first source that knows it."""

    senses: Sequence[Sense] = ()
    source: str = ""
    part: str = ""
    """The words of the name that are known."""


def _known(name: str, sources: Sequence[Knowledge], parts: bool) -> _Known:
    for form in forms(name):
        for source in sources:
            if senses := source.senses(form):
                return _Known(senses, source.noun, "")
    words = spoken(name).split()
    for begin in range(1, len(words) if parts else 0):
        part = " ".join(words[begin:])
        for form in forms(part):
            for source in sources:
                if senses := source.senses(form):
                    return _Known(senses, source.noun, part)
    return _Known()


def forms(name: str) -> list[str]:
    """Spellings under which a name is looked up: as it is, in one word, and in the singular.

    >>> forms("colt's foot"), forms("canterbury bells")
    (["colt's foot", 'coltsfoot'], ['canterbury bells', 'canterburybells', 'canterbury bell'])
    """
    joined = folded(name).replace(" ", "")
    singular = name[:-1] if name.endswith("s") and not name.endswith("ss") else name
    return list(dict.fromkeys((name, joined if " " in name else name, singular)))


def _by_context(
    names: Sequence[str], known: Sequence[_Known], several: Sequence[int], settings: TextSettings, store: Path | None
) -> list[Sense]:
    """The chosen sense of each name in ``several``."""
    contexts = [
        f"{spoken(name)}: {' '.join(each.senses[0].definitions)}" if len(each.senses) == 1 else spoken(name)
        for name, each in zip(names, known)
    ]
    candidates = [sense for number in several for sense in known[number].senses]
    texts = [*contexts, *(" ".join(sense.definitions) for sense in candidates)]
    embedded_NE = embed(settings.encoder, texts, store)
    cosines_NK = embedded_NE[len(names) :] @ embedded_NE[: len(names)].T
    chosen, begin = [], 0
    for number in several:
        senses = known[number].senses
        own = cosines_NK[begin : begin + len(senses)].clone()
        begin += len(senses)
        own[:, number] = -torch.inf
        neighbors = min(NEIGHBORS, len(names) - 1)
        fit = own.topk(neighbors, dim=1).values.mean(1) if neighbors else torch.zeros(len(senses))
        wanted = folded(known[number].part or names[number])
        ranks = [[*map(folded, sense.names), wanted].index(wanted) for sense in senses]
        chosen.append(senses[int((fit - RANK * torch.tensor(ranks)).argmax())])
    return chosen
