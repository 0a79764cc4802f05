"""Which split the name of a folder means: ``Training``, ``seg_train``, ``my_val``, ``test_images``, ``dev`` …"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from distill.data.base import Split

WORDS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
_EVALUATION = frozenset({"eval", "evaluation"})
_AFTER = frozenset(
    (
        *("set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "files", "split", "folder"),
        *("dir", "cropped", "resized", "new", "final", "full", "small", "large", "mini", "v"),
    )
)
"""Words that may follow: ``train_images`` is a split, ``test_tube`` is more likely a class."""
_GLUED = re.compile(f"(.*?)({'|'.join(sorted(WORDS, key=len, reverse=True))})({'|'.join(sorted(_AFTER))})?$")
"""A word for a split with letters before it (``dogtrain``), or another word after it (``testset``)."""


def split_of(name: str) -> Split | None:
    """The split that a folder's name means, or None.

    The words of a name are separated by punctuation, digits or a capital letter. Exactly one of them is a word for a
    split (``train_val`` counts as train), and only words such as "images" or "set" follow it.
    """
    words = _words(name)
    at = [index for index, word in enumerate(words) if word in WORDS]
    splits = [WORDS[words[index]] for index in at]
    if splits not in (["train"], ["val"], ["test"], ["train", "val"]):
        return None
    return splits[0] if all(word in _AFTER for word in words[at[-1] + 1 :]) else None


def splits_of(names: Iterable[str]) -> dict[str, Split]:
    """Name → split, for the folders of one folder that mean one.

    Beside the names of :func:`split_of`, these are names that differ only in the word for the split, such as
    ``train_birds`` and ``test_birds``, or ``dogtrain`` and ``dogtest``. ``evaluation`` is val, as in timm, but test
    beside another val folder.
    """
    listed = list(names)
    splits = {name: split for name in listed if (split := split_of(name)) is not None}
    patterns: dict[tuple[str, ...], dict[str, Split]] = {}
    for name in listed:
        words = [part for word in _words(name) for part in _glued(word)]
        at = [index for index, word in enumerate(words) if word in WORDS]
        if len(at) == 1:
            pattern = (*words[: at[0]], "", *words[at[0] + 1 :])
            patterns.setdefault(pattern, {})[name] = WORDS[words[at[0]]]
    for same_pattern in patterns.values():
        if len(set(same_pattern.values())) > 1 and "train" in same_pattern.values():
            splits |= same_pattern
    others = {split for name, split in splits.items() if not _EVALUATION & set(_words(name))}
    if "val" in others and "test" not in others:
        splits |= {name: "test" for name in splits if _EVALUATION & set(_words(name))}
    return {name: splits[name] for name in listed if name in splits}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without digits: ``seg_trainSet2`` and ``seg_trainset`` → seg, train, set."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", name)]
    return [part for word in words for part in (_glued(word) if _glued(word)[0] in WORDS else [word])]


def _glued(word: str) -> list[str]:
    """The parts of a word that ends in a word for a split, or in one and a word that may follow."""
    match = _GLUED.match(word)
    return [part for part in match.groups() if part] if match else [word]
