"""Reads a config file as a typed experiment, and writes it; errors name the key path.

Importing this does not import torch. Validating a config that names objectives, deltas or operations does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.json_schema import models_json_schema

from augment.base import VALIDATION_PASSES, PluginError
from distill.config_errors import error_lines
from distill.experiments.base import DEFAULT, Experiment, experiment_class, experiment_kinds
from distill.run.folder import CONFIG, RunError, read_record, read_tree
from distill.yaml_tree import ConfigError, dump_yaml, load_tree, merge_trees, parse_yaml

__all__ = [
    "ConfigError",
    "Experiment",
    "dump_config",
    "editor_schema",
    "load_config",
    "merge_trees",
    "parse_yaml",
    "read_run",
    "validate_tree",
]


def load_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Read, override and validate a config, without opening networks or data. Raises ``ConfigError``."""
    return validate_tree(load_tree(path, overrides), str(path))


def validate_tree(tree: dict[str, Any], source: str, operations: bool = True) -> Experiment:
    """The experiment of plain values.

    Args:
        tree: the values.
        source: where they are from, for errors.
        operations: whether augmentation is checked too; a command that makes no views need not import it.

    Returns:
        The experiment.

    Raises:
        ConfigError: the values cannot be used, with a line for each error.
    """
    try:
        experiment = experiment_class(tree.get("kind", DEFAULT) if isinstance(tree, dict) else DEFAULT)
    except PluginError as error:
        raise ConfigError(f"{source} cannot be used:\n  kind: {error}") from None
    passes = VALIDATION_PASSES if operations else VALIDATION_PASSES[:-1]
    try:
        return [experiment.model_validate(tree, context=deferred) for deferred in passes][-1]
    except ValidationError as error:
        lines = [f"  {line}" for line in error_lines(error, tree)]
        raise ConfigError(f"{source} cannot be used:\n" + "\n".join(lines)) from None


def dump_config(experiment: Experiment) -> str:
    """The resolved config as YAML, from which ``load_config`` reads an equal experiment."""
    return dump_yaml(experiment.model_dump(mode="json"))


def read_run(path: Path, operations: bool = True) -> tuple[Experiment, dict[str, Any]]:
    """Config and record of an existing run folder, as :func:`validate_tree` reads it. Raises ``RunError`` too.

    The folder that the run was started in is added to the end of ``sys.path``, since the config may name classes of
    modules in it.
    """
    tree, config = read_tree(path), str(path / CONFIG)
    try:
        record = read_record(path)
    except RunError:
        validate_tree(tree, config, operations)  # an error of the config is shown first
        raise
    if (started_in := record.get("started_in")) and started_in not in sys.path:
        sys.path.append(started_in)
    return validate_tree(tree, config, operations), record


def editor_schema() -> dict[str, Any]:
    """JSON schema of a config file of any kind.

    Only ``type`` is required, since the file in ``base`` may have the other keys.
    """
    kinds = experiment_kinds()
    refs, shared = models_json_schema([(kind, "validation") for kind in kinds.values()])
    schema = _without_required(shared)
    no_kind: dict[str, Any] = {"not": {"required": ["kind"]}}
    alone: dict[str, Any] = {"not": {"anyOf": [{"required": ["kind"]}, {"required": ["base"]}]}}
    rules = [{"if": {"required": ["base"], **no_kind}, "then": {"anyOf": list(refs.values())}}]
    for name, kind in kinds.items():
        ref = refs[kind, "validation"]
        schema["$defs"][ref["$ref"].rpartition("/")[2]]["properties"]["base"] = {
            "type": "string",
            "description": "a config file whose settings this file overrides, key by key",
        }
        named = {"properties": {"kind": {"const": name}}, "required": ["kind"]}
        rules.append({"if": {"anyOf": [named, alone]} if name == DEFAULT else named, "then": ref})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", **schema, "allOf": rules}


def _without_required(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_required(item) for item in part]
    if not isinstance(part, dict):
        return part
    # ``type`` distinguishes a user's own class from a misspelt built-in one.
    kept = {key: value for key, value in part.items() if key != "required" or value == ["type"]}
    return {key: _without_required(value) for key, value in kept.items()}
