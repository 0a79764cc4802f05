"""Reads config files as plain values: strict YAML, ``base:`` files, and ``key.path=value`` overrides.

This does not import torch, so that an error in a file is reported quickly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from augment.base import UserError, did_you_mean, expanded


class ConfigError(UserError, ValueError):
    """The config cannot be used; every line of the text names a key path and what was expected there."""

    exit_code = 2


def load_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config file with its bases and overrides; without ``name``, the run is named after the file."""
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("name", path.stem)
    return tree


def read_tree(path: Path, _above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file as plain values; its settings override those of ``base: FILE`` (relative to it), key by key."""
    named = f"{path} (the base of {_above[-1]})" if _above else str(path)
    if path.resolve() in [above.resolve() for above in _above]:
        raise ConfigError(f"{path}: 'base' leads back to this file, through {', '.join(map(str, _above))}")
    tree = parse_yaml(read_config_text(path, named), str(path))
    if tree is None:
        raise ConfigError(f"{named} is empty")
    if not isinstance(tree, dict):
        raise ConfigError(f"{named}: expected a mapping of settings (key: value), found {_kind(tree)}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected a file name, found {base!r}")
    return merge_trees(read_tree(path.parent / expanded(base), (*_above, path)), tree)


def read_config_text(path: Path, named: str = "") -> str:
    """The text of a config file. Raises ``ConfigError``, whose text starts with ``named``, or the path."""
    named = named or str(path)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{named}: no such file" + (f"; there is {', '.join(near)}" if near else "")) from None
    except OSError as error:
        raise ConfigError(f"{named} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{named} is not text in UTF-8: {error}") from error


def merge_trees(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``under`` with the settings of ``over``: mappings merge key by key; other values, lists too, are replaced."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another type has other keys, so none of the old type's is kept.
        if both and value.get("type", merged[key].get("type")) == merged[key].get("type"):
            value = merge_trees(merged[key], value)
        merged[key] = value
    return merged


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Change one value of the tree; list items are counted from 0, values are read as YAML.

    ==================  ============================================================================================
    override            effect
    ==================  ============================================================================================
    ``key.path=value``  sets the value; Hydra's ``+key=value`` and ``++key=value`` do the same
    ``key.path+=value`` appends the value to a list; of a list as value, each item
    ``~key.path``       removes a key or an item of a list, as in Hydra
    ==================  ============================================================================================

    Args:
        tree: changed in place.
        override: as in the table.

    Raises:
        ConfigError: the text has another form, a value on the path has no keys, or there is no such list or key.
    """
    path, equals, text = override.partition("=")
    removes, appends = path.startswith("~") and not equals, path.endswith("+") and bool(equals)
    path = path.removeprefix("~") if removes else path.removesuffix("+").removeprefix("+").removeprefix("+")
    keys = path.split(".")
    if not (equals or removes) or not all(keys):
        raise ConfigError(
            f"override {override!r}: write key.path=value, such as training.epochs=20; key+=value appends to a list,"
            " ~key removes"
        )
    value = parse_yaml(text, f"override {path}")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, dict) and node.get(key) is None and not removes:
            node[key] = {}
        node = _child(node, keys[: depth + 1], path)
    last: Any = keys[-1]
    if isinstance(node, list):
        last = _item(node, last, path)
    elif not isinstance(node, dict):
        raise ConfigError(f"override {path}: {'.'.join(keys[:-1])} is {node!r}, which has no keys")
    if removes:
        _child(node, keys, path)
        del node[last]
    elif appends:
        before = node[last] if isinstance(node, list) or node.get(last) is not None else []
        if not isinstance(before, list):
            raise ConfigError(f"override {path}+: {path} is {before!r}, not a list; set it by {path}=[…]")
        node[last] = [*before, *(value if isinstance(value, list) else [value])]
    else:
        node[last] = value


def _child(node: Any, keys: Sequence[str], path: str) -> Any:
    """The value at the last of ``keys`` in ``node``, which is the value at the others."""
    if isinstance(node, list):
        return node[_item(node, keys[-1], path)]
    if not isinstance(node, dict):
        raise ConfigError(f"override {path}: {'.'.join(keys[:-1])} is {node!r}, which has no keys")
    if keys[-1] not in node:
        raise ConfigError(f"override ~{path}: there is no {'.'.join(keys)}{did_you_mean(keys[-1], node)}")
    return node[keys[-1]]


def _item(items: list[Any], key: str, path: str) -> int:
    if not re.fullmatch(r"\d{1,6}", key) or int(key) >= len(items):
        known = f"its items are 0 to {len(items) - 1}" if items else "it is empty"
        raise ConfigError(f"override {path}: {key!r} is not an item of the list; {known} (key+=value appends one)")
    return int(key)


# --- YAML ---------------------------------------------------------------------------------------------------------


def parse_yaml(text: str, name: str) -> Any:
    """Plain values from YAML text. Raises ``ConfigError``, whose text has ``name`` and the line."""
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        message = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            f"{_place(error.problem_mark) if error.problem_mark else name}: not valid YAML: {message}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None


def dump_yaml(tree: Any) -> str:
    """YAML from which ``parse_yaml`` reads equal values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """The values in which two trees of plain values differ.

    Args:
        before: a tree.
        now: the tree that it is compared with.
        path: key path of both in a larger tree; empty at the root.

    Returns:
        ``key.path (BEFORE, now NOW)`` for each.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)]
    return [] if before == now else [f"{path} ({before!r}, now {now!r})"]


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2's core types, without tags, aliases and duplicate keys; ``1e-3`` is a float, ``no`` a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{_place(key_node.start_mark)}: a key must be a plain word or number")
            key = self.construct_object(key_node)
            if key in first:
                raise ConfigError(
                    f"{_place(key_node.start_mark)}: duplicate key {key!r}, first in line {first[key].line + 1}"
                )
            first[key] = key_node.start_mark
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{_place(event.start_mark)}: YAML alias '*{event.anchor}' is not supported;"
                " share settings by 'base: FILE'"
            )
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise ConfigError(
                f"{_place(event.start_mark)}: YAML tag '{tag}' is not supported; a config holds plain values only"
            )
        return super().compose_node(parent, index)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        # PyYAML reads 010 as eight, and raises ValueError for 08 and for thousands of digits.
        try:
            return int(node.value)
        except ValueError:
            raise ConfigError(f"{_place(node.start_mark)}: a number of {len(node.value)} digits is too long") from None


class _Dumper(yaml.SafeDumper):
    """Quotes strings that the loader would not read as strings."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_INT = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$")
for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    _class.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r}"
