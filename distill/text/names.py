"""Class names as a text has them: without leading numbers and underscores.

Importing this does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from augment.base import UserError

_LEADING_NUMBER = re.compile(r"^\d+[\s._-]+(?=\S*[^\W\d])")
_SYNSET = re.compile(r"n\d{8}$")


class TextError(UserError, ValueError):
    """A class name, knowledge, or a text encoder cannot be used; the text names it and what would work."""


def spoken(name: str) -> str:
    """The name as it stands in a text.

    A leading number is removed where letters follow, underscores become spaces, and spaces are single.

    >>> [spoken(name) for name in ("43 sword lily", "007.great_crested_grebe", "aquarium_fish", "7", "3d printer")]
    ['sword lily', 'great crested grebe', 'aquarium fish', '7', '3d printer']
    """
    return " ".join(_LEADING_NUMBER.sub("", name.strip()).replace("_", " ").split())


def folded(name: str) -> str:
    """The name for comparisons: :func:`spoken`, in lower case, with spaces for hyphens and without apostrophes."""
    return " ".join(spoken(name).lower().replace("-", " ").replace("'", "").split())


def is_synset(name: str) -> bool:
    """Whether a class is named by its WordNet id, such as ``n02123045``."""
    return _SYNSET.match(name) is not None


def check_names(names: Sequence[str], key: str) -> None:
    """Raise ``TextError`` if classes cannot be told apart by their texts.

    Args:
        names: of the classes.
        key: what the names are of, for the message.
    """
    by_text: dict[str, str] = {}
    for number, name in enumerate(names):
        if not spoken(name):
            raise TextError(f"{key}: class {number} has an empty name, and a text needs one")
        if (other := by_text.setdefault(folded(name), name)) is not name:
            raise TextError(f"{key}: the classes {other!r} and {name!r} are the same in a text, {spoken(name)!r}")
        if name in names[:number]:
            raise TextError(f"{key}: two classes are called {name!r}")
