"""The errors of a config, a line for each key, in terms of YAML."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from augment.base import did_you_mean

_KINDS = frozenset(["int", "float", "str", "bool", "none", "bytes", "path", "constrained-int", "constrained-float"])
"""What pydantic inserts into the path of an error for the alternatives of a union, besides names of classes."""

Path = tuple[int | str, ...]


def error_lines(error: ValidationError, tree: Any) -> list[str]:
    """``key.path: what is wrong`` for each key at fault.

    A value that has several kinds, such as a number or one of some words, has one line. If a part of it is at fault,
    that part is named, and not the kinds that the whole could have had.

    Args:
        error: of the validation.
        tree: the plain values that were validated.

    Returns:
        The lines, in the order of the errors.
    """
    sentences: dict[Path, list[str]] = defaultdict(list)
    of_unions: set[Path] = set()
    for details in error.errors():
        if _is_an_echo(details):
            continue
        path, in_union = _key_path(details["loc"], tree)
        sentences[path].append(_sentence(details))
        if in_union:
            of_unions.add(path)
    deeper = {path[:depth] for path in sentences for depth in range(len(path))}
    return [
        f"{'.'.join(map(str, path)) or 'all of it'}: {_joined(texts)}"
        for path, texts in sentences.items()
        if not (path in of_unions and path in deeper)
    ]


def _key_path(location: Path, tree: Any) -> tuple[Path, bool]:
    """The keys of a location, without the alternatives of unions, and whether its last part was an alternative."""
    path: list[int | str] = []
    node, in_union = tree, False
    for part in location:
        there = part in node if isinstance(node, dict) else isinstance(node, list) and part in range(len(node))
        in_union = not there and _is_alternative(part)
        if not in_union:
            path.append(part)
            node = node[part] if there else None
    return tuple(path), in_union


def _is_alternative(part: int | str) -> bool:
    return isinstance(part, str) and (part in _KINDS or "[" in part or part[:1].isupper())


def _joined(sentences: list[str]) -> str:
    """One sentence for all kinds that a value may have, or the one about the kind that it does have."""
    sentences = list(dict.fromkeys(sentences))
    kinds = [re.fullmatch(r"expected (.+?), found (.+?)(; did you mean .+)?", sentence) for sentence in sentences]
    if other := [sentence for sentence, kind in zip(sentences, kinds) if kind is None]:
        return "; or ".join(other)
    values = {kind[2] for kind in kinds if kind is not None}
    if len(sentences) == 1 or len(values) > 1:
        return "; or ".join(sentences)
    expected = " or ".join(kind[1] for kind in kinds if kind is not None)
    return f"expected {expected}, found {values.pop()}{''.join(kind[3] or '' for kind in kinds if kind is not None)}"


def _is_an_echo(error: ErrorDetails) -> bool:
    """Whether a list is reported as too short only because its items are wrong."""
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _sentence(error: ErrorDetails) -> str:
    """The message for pydantic's error about one key, in terms of YAML."""
    kind, about = error["type"], error.get("ctx", {})
    given = _shown(error["input"])
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {given}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {about[key]:g}, is {given}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", about["expected"])
        hint = did_you_mean(str(error["input"]), choices)
        return f"expected {about['expected']}, found {given}" + (hint if "did you mean" in hint else "")
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        bound = about["min_length" if few else "max_length"]
        return f"needs at {'least' if few else 'most'} {bound} item{'s' * (bound != 1)}, has {about['actual_length']}"
    return error["msg"].removeprefix("Value error, ")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a mapping (key: value)"),
    "string_type": "a text (numbers and truth values become text in quotes)",
    "path_type": "a path",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
