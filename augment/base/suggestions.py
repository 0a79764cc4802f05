"""What the error of an unknown name suggests: the nearest name, or the name here of what another library calls so.

The tables of other names are in a module ``other_names`` beside each registry. They are read for suggestions only: no
name in them is accepted in the place of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from augment.base.other_names import OTHER_NAMES

SHOWN = 24
"""A list of known names that is longer than this is cut to the nearest ones."""
NEAREST = 5


def did_you_mean(
    name: str, choices: Iterable[str], others: Mapping[str, tuple[str, ...]] | None = None, listed_by: str = ""
) -> str:
    """What to suggest for an unknown name, to be appended to an error.

    Args:
        name: the unknown name.
        choices: the known names.
        others: what other libraries and papers call them, see :func:`table`; None: other names of keys and values.
        listed_by: the command that lists all known names, for lists that are too long to show.

    Returns:
        ``"; did you mean 'x'?"`` for the closest of ``choices``, else ``"; known: a, b, c"``; empty without choices.
    """
    name, known = str(name), sorted(choices)
    others = _KEYS_AND_VALUES if others is None else others
    folded = {fold(choice): choice for choice in reversed(known) if fold(choice)}
    close = get_close_matches(name.lower(), [choice.lower() for choice in known], n=1, cutoff=0.6)
    other = next((other for other in others.get(fold(name), ()) if other in known or other.endswith(".")), "")
    suggestion = folded.get(fold(name), other)
    if suggestion.endswith("."):
        return f"; {suggestion.removesuffix('.')}"
    if not suggestion and close:
        suggestion = next(choice for choice in known if choice.lower() == close[0])
    if suggestion:
        return f"; did you mean {suggestion!r}?"
    if len(known) <= SHOWN:
        return "; known: " + ", ".join(known) if known else ""
    closest = ", ".join(get_close_matches(name, known, n=NEAREST, cutoff=0.0))
    return f"; nearest of {len(known)}: {closest}" + (f" ({listed_by} lists all)" if listed_by else "")


def table(other_names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The argument ``others`` of :func:`did_you_mean`.

    Args:
        other_names: our name, or a sentence with a final period about what to do instead → other names, separated by
            spaces.

    Returns:
        Folded other name → our names or sentences.
    """
    made: dict[str, tuple[str, ...]] = {}
    for suggested, names in other_names.items():
        for name in map(fold, names.split()):
            made[name] = (*made.get(name, ()), suggested)
    return made


def fold(name: str) -> str:
    """A name in lower case, without punctuation and a final ``loss`` or ``config``: ``KLDivLoss`` equals ``kl_div``."""
    plain = re.sub(r"[^\w+]|_", "", name.lower())
    return re.sub("(?<=.)(loss|config)$", "", plain)


_KEYS_AND_VALUES = table(OTHER_NAMES)
