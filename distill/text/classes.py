"""The texts of classes: which sense of each name is meant, what is known about it, and the embeddings of both.

Shape suffixes: K classes, N texts, E width of the embeddings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.text.embeddings import embed
from distill.text.knowledge.base import Knowledge, Sense, made
from distill.text.knowledge.timm import TimmKnowledge
from distill.text.names import check_names, folded, is_synset, spoken
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
        synonym: the name for texts, where ``name`` is a WordNet id or a list of synonyms; empty: it is ``name``.
    """

    name: str
    definitions: tuple[str, ...] = ()
    source: str = ""
    senses: int = 0
    sense: str = ""
    part: str = ""
    synonym: str = ""

    @property
    def spoken(self) -> str:
        """The name as texts have it."""
        return spoken(self.synonym or self.name)

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

    A class that is named by its WordNet id has that sense, and its texts the first of the synset's names. Of a name
    with synonyms after commas, the texts have the first, and the others are looked up if that is not known.

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
    synonyms = [synonyms_of(name) for name in names]
    known = [_known(name, own, sources, settings.parts_of_names) for name, own in zip(names, synonyms)]
    first = [own[0] if own else name for name, own in zip(names, synonyms)]
    folds = Counter(map(folded, first))
    # Two classes whose lists of synonyms begin alike keep them whole.
    titles = [
        own if folds[folded(own)] == 1 or is_synset(spoken(name)) else spoken(name) for own, name in zip(first, names)
    ]
    chosen: dict[int, Sense] = {}
    several = [number for number, each in enumerate(known) if len(each.senses) > 1]
    if settings.sense == "first":
        chosen = {number: known[number].senses[0] for number in several}
    elif settings.sense == "context" and several:
        chosen = dict(zip(several, _by_context(titles, known, several, settings, store)))
    texts = []
    for number, (name, each, own) in enumerate(zip(names, known, titles)):
        taken = [chosen[number]] if number in chosen else each.senses
        definitions = tuple(dict.fromkeys(text for sense in taken for text in sense.definitions))
        sense = taken[0].key if len(taken) == 1 else ""
        synonym = "" if own in (name, spoken(name)) else own
        texts.append(ClassText(name, definitions, each.source, len(each.senses), sense, each.part, synonym))
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
    """The last words of the name, if it is these that are known."""
    looked_up: str = ""
    """The name, the synonym or the last words that are known."""


def _known(name: str, synonyms: Sequence[str], sources: Sequence[Knowledge], parts: bool) -> _Known:
    for each in (name, *synonyms):
        if (senses_and_noun := _in_sources(each, sources)) is not None:
            senses, noun = senses_and_noun
            return _Known(_with_most(synonyms, senses), noun, "", each)
    words = spoken(synonyms[0] if synonyms else name).split()
    for begin in range(1, len(words) if parts else 0):
        part = " ".join(words[begin:])
        if (senses_and_noun := _in_sources(part, sources)) is not None:
            return _Known(*senses_and_noun, part, part)
    return _Known()


def _in_sources(name: str, sources: Sequence[Knowledge]) -> tuple[Sequence[Sense], str] | None:
    """The senses in the first source that knows a spelling of the name, and what that source is."""
    for form in forms(name):
        for source in sources:
            if senses := source.senses(form):
                return senses, source.noun
    return None


def _with_most(synonyms: Sequence[str], senses: Sequence[Sense]) -> Sequence[Sense]:
    """The senses that have the most of the synonyms."""
    wanted = set(map(folded, synonyms))
    counts = [len(wanted.intersection(map(folded, sense.names))) for sense in senses]
    return [sense for sense, count in zip(senses, counts) if count == max(counts)]


def synonyms_of(name: str) -> list[str]:
    """The names between the commas of a class's name, or those of the synset whose WordNet id it is; else none.

    >>> synonyms_of("tench, Tinca tinca"), synonyms_of("n02123045"), synonyms_of("elf")
    (['tench', 'Tinca tinca'], ['tabby', 'tabby cat'], [])
    """
    name = spoken(name)
    if is_synset(name):
        sense = TimmKnowledge(TimmKnowledge.Settings()).sense(name)
        return [] if sense is None else list(sense.names)
    names = [own for part in name.split(",") if (own := " ".join(part.split()))]
    return names if len(names) > 1 else []


def forms(name: str) -> list[str]:
    """Spellings under which a name is looked up: as it is, in one word, and in the singular.

    >>> forms("colt's foot"), forms("canterbury bells")
    (["colt's foot", 'coltsfoot'], ['canterbury bells', 'canterburybells', 'canterbury bell'])
    """
    joined = folded(name).replace(" ", "")
    singular = name[:-1] if name.endswith("s") and not name.endswith("ss") else name
    return list(dict.fromkeys((name, joined if " " in name else name, singular)))


def _by_context(
    titles: Sequence[str], known: Sequence[_Known], several: Sequence[int], settings: TextSettings, store: Path | None
) -> list[Sense]:
    """The chosen sense of each name in ``several``."""
    contexts = [
        f"{spoken(name)}: {' '.join(each.senses[0].definitions)}" if len(each.senses) == 1 else spoken(name)
        for name, each in zip(titles, known)
    ]
    candidates = [sense for number in several for sense in known[number].senses]
    texts = [*contexts, *(" ".join(sense.definitions) for sense in candidates)]
    embedded_NE = embed(settings.encoder, texts, store)
    cosines_NK = embedded_NE[len(titles) :] @ embedded_NE[: len(titles)].T
    chosen, begin = [], 0
    for number in several:
        senses = known[number].senses
        own = cosines_NK[begin : begin + len(senses)].clone()
        begin += len(senses)
        own[:, number] = -torch.inf
        neighbors = min(NEIGHBORS, len(titles) - 1)
        fit = own.topk(neighbors, dim=1).values.mean(1) if neighbors else torch.zeros(len(senses))
        wanted = folded(known[number].looked_up)
        ranks = [[*map(folded, sense.names), wanted].index(wanted) for sense in senses]
        chosen.append(senses[int((fit - RANK * torch.tensor(ranks)).argmax())])
    return chosen
