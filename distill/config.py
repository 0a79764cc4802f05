"""The whole experiment as one typed tree, read from YAML with overrides; every error names its key path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from augment.dual import AugmentSettings
from augment.errors import ExplainedError
from augment.settings import Settings
from distill.data.module import DataSettings
from distill.models.student import StudentSettings
from distill.models.teacher import TeacherSettings
from distill.objectives.base import Objective
from distill.registry import Family
from distill.training.settings import FitTeacherSettings, TrainingSettings

AnyObjective = Annotated[Objective.Settings, Family("distill.objectives", "Objective")]


class ConfigError(ExplainedError, ValueError):
    """The config cannot be used; every line of the text names a key path and what was expected there."""

    exit_code = 2


class ControlSettings(Settings):
    """What the student is compared with."""

    linear_probe: bool = Field(True, description="logistic regression on the frozen backbone's features")
    labels_only: bool = Field(True, description="the same student and number of updates without a teacher")


class ExportSettings(Settings):
    verify_images: int = Field(256, ge=1, description="real images on which merged must equal unmerged")


class Experiment(Settings):
    """One run: data, views, teacher, student, objectives, training, controls, export."""

    name: str = Field(description="the run folder's name")
    output: Path = Field(Path("runs"), description="folder that holds the run folders and the fitted teachers")
    seed: int = Field(0, ge=0, lt=2**31)
    data: DataSettings
    augment: AugmentSettings = AugmentSettings()
    teacher: TeacherSettings | None = Field(None, description="none: the student learns from labels alone")
    fit_teacher: FitTeacherSettings | None = Field(None, description="first train the teacher; cached by content")
    student: StudentSettings
    objectives: tuple[AnyObjective, ...] = Field(min_length=1)
    training: TrainingSettings = TrainingSettings()
    controls: ControlSettings = ControlSettings()
    export: ExportSettings = ExportSettings()

    @field_validator("name")
    @classmethod
    def _stays_in_output(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError("a run name is letters, digits, '.', '_' and '-', and starts with a letter or digit")
        if name == "teachers":
            raise ValueError("'teachers' is where fitted teachers are kept; choose another name")
        return name

    @model_validator(mode="after")
    def _parts_belong_together(self) -> Experiment:
        reading = [o.type for o in self.objectives if o.component.reads_teacher]  # type: ignore[union-attr]
        if reading and self.teacher is None:
            raise ValueError(f"objectives {', '.join(reading)} read a teacher, and there is none; add teacher.networks")
        if self.teacher is not None and not reading:
            raise ValueError("there is a teacher, but no objective reads it; add one such as kd, or remove the teacher")
        if self.fit_teacher is not None and self.teacher is None:
            raise ValueError("fit_teacher needs teacher.networks")
        if self.data.batch_size % self.training.devices:
            raise ValueError("data.batch_size is shared out over training.devices, so it must be a multiple of it")
        return self


# --- YAML ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types without surprises: no tags, no duplicate keys, ``1e-3`` is a float, ``no`` is a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(
                    f"{_place(key_node.start_mark)}: key {key!r} stands here for the second time, "
                    f"first in line {seen[key].line + 1}"
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise ConfigError(
                f"{_place(event.start_mark)}: YAML tag {tag!r} is refused; a config holds plain values only"
            )
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(
                f"{_place(event.start_mark)}: YAML aliases are refused; use 'base: FILE' to share settings"
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":timestamp", ":int"))
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_NUMBER = list("-+.0123456789")
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), _NUMBER)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|nan))$"),
    _NUMBER,
)


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def parse_yaml(text: str, name: str) -> Any:
    """Plain values from YAML text. Raises ``ConfigError`` with file and line."""
    loader = _Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = _place(mark) if mark else name
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from error
    finally:
        loader.dispose()


def read_tree(path: Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config file as plain values; ``base: FILE`` (relative to it) is read first and laid under it, key by key."""
    if path.resolve() in _seen:
        raise ConfigError(f"{path}: 'base' leads back to this file")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{path}: no such file" + (f"; there is {', '.join(near)}" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: expected a file name")
    return merge_trees(read_tree(path.parent / base, (*_seen, path.resolve())), tree)


def merge_trees(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``under``: mappings merge key by key, everything else (lists too) is replaced."""
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another type has other keys: nothing of the old one is kept.
        if both and value.get("type", merged[key].get("type")) == merged[key].get("type"):
            value = merge_trees(merged[key], value)
        merged[key] = value
    return merged


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set ``key.path=value`` in the tree; list items are counted from 0, values are read as YAML.

    Raises:
        ConfigError: no ``=``, or the path leads through a value that has no keys.
    """
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"{override!r}: an override is written key.path=value")
    value = parse_yaml(text, f"override {path}")
    keys = path.split(".")
    node: Any = tree
    for depth, key in enumerate(keys[:-1]):
        if isinstance(node, list):
            node = node[_item(node, key, path)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            raise ConfigError(f"override {path}: {'.'.join(keys[:depth])} is {node!r}, which has no keys")
    if isinstance(node, list):
        node[_item(node, keys[-1], path)] = value
    elif isinstance(node, dict):
        node[keys[-1]] = value
    else:
        raise ConfigError(f"override {path}: {'.'.join(keys[:-1])} is {node!r}, which has no keys")


def _item(items: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override {path}: {key!r} is no item of a list of {len(items)}")
    return int(key)


# --- Validation ---------------------------------------------------------------------------------------------------


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate a config. Raises ``ConfigError``; no network or data is touched."""
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("name", path.stem)
    return validate_tree(tree, str(path))


def validate_tree(tree: dict[str, Any], source: str) -> Experiment:
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in e['loc']) or '(whole config)'}: {_sentence(e)}" for e in error.errors()
        ]
        raise ConfigError(f"{source} cannot be used:\n" + "\n".join(lines)) from None


def _sentence(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "missing":
        return "is missing"
    if error["type"] in ("unknown_key", "unknown_type", "no_type", "value_error"):
        return message
    return f"should be {message}, is {error['input']!r}"


def dump_config(experiment: Experiment) -> str:
    """The resolved config as YAML that ``load_config`` reads back to an equal experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
