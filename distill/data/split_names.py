"""Which split the name of a folder means: ``Training``, ``seg_train``, ``my_val``, ``test_images``, ``dev`` …"""

from __future__ import annotations

import re
from collections.abc import Iterable

from distill.data.base import Split

WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "validating", "valset", "dev", "devset"), "val"),
    **dict.fromkeys(("eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "testdata"), "test"),
}  # type: ignore[assignment]
_AFTER = frozenset(
    (
        *("set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos", "files", "split", "folder"),
        *("dir", "cropped", "resized", "new", "final", "full", "small", "large", "mini", "v"),
    )
)
"""Words that may follow: ``train_images`` is a split, ``test_tube`` is more likely a class."""


def split_of(name: str) -> Split | None:
    """The split that a folder's name means, or None.

    The words of a name are separated by punctuation, digits or a capital letter. Exactly one of them is a word for a
    split (``train_val`` counts as train), and only words such as "images" or "set" follow it.
    """
    words = _words(name)
    at = [index for index, word in enumerate(words) if word in WORDS]
    splits = [WORDS[words[index]] for index in at]
    if splits == ["train", "val"]:
        return "train" if all(word in _AFTER for word in words[at[1] + 1 :]) else None
    if len(splits) != 1 or not all(word in _AFTER for word in words[at[0] + 1 :]):
        return None
    return splits[0]


def splits_of(names: Iterable[str]) -> dict[str, Split]:
    """Name → split, for the folders of one folder that mean one.

    Beside the names of :func:`split_of`, these are pairs that differ only in the word for the split, such as
    ``train_birds`` and ``test_birds``.
    """
    listed = list(names)
    found = {name: split for name in listed if (split := split_of(name)) is not None}
    patterns: dict[tuple[str, ...], dict[str, Split]] = {}
    for name in listed:
        words = _words(name)
        at = [index for index, word in enumerate(words) if word in WORDS]
        if len(at) == 1:
            pattern = (*words[: at[0]], "", *words[at[0] + 1 :])
            patterns.setdefault(pattern, {})[name] = WORDS[words[at[0]]]
    for alike in patterns.values():
        if len(set(alike.values())) > 1 and "train" in alike.values():
            found |= alike
    return {name: found[name] for name in listed if name in found}


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without digits: ``seg_trainSet2`` → seg, train, set."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+", name)]
