"""``distill continual continue``: the config of a run that goes on with a finished one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from augment.base import absolute
from distill.config import merge_trees, read_run, validate_tree
from distill.experiments.continual import ContinualExperiment
from distill.run.folder import check_finished, read_tree
from distill.stages.report import RESULTS
from distill.yaml_tree import ConfigError, apply_override
from distill.yaml_tree import read_tree as read_config


def continued_experiment(run: Path, config: Path | None, overrides: Sequence[str]) -> ContinualExperiment:
    """The config of a run that takes over the learner of a finished one.

    Args:
        run: folder of the finished run; its own config applies where nothing else is given.
        config: a YAML file, whose settings replace those of the run, key by key; None: there is none.
        overrides: ``key.path=value``.

    Returns:
        The experiment, with ``continues`` set and another name.

    Raises:
        ConfigError: it is no stream, or a setting cannot be used.
        RunError: the run is not finished.
    """
    kind = read_run(run, operations=False)[0].kind
    if kind != "continual":
        raise ConfigError(f"{run}: kind: {kind}, and only a stream (kind: continual) can go on")
    tree = read_tree(run)
    check_finished(run, run / RESULTS)
    new = read_config(config) if config is not None else {}
    name = f"{tree['name']}-continued"
    data = new.pop("data", None)
    tree = merge_trees(tree, {"name": name, **new, "continues": str(absolute(run))})
    if isinstance(data, dict):
        # A source with a type shares no key with the old one.
        source = data.get("source")
        other = isinstance(source, dict) and source.get("type")
        kept = {key: value for key, value in tree["data"].items() if key != "source" or not other}
        tree["data"] = merge_trees(kept, data)
    elif data is not None:
        tree["data"] = data
    for override in overrides:
        apply_override(tree, override)
    if tree.get("kind") != kind:
        raise ConfigError(f"kind: {tree.get('kind')}: a stream (kind: {kind}) goes on as one; leave kind out")
    return cast(ContinualExperiment, validate_tree(tree, f"{run}, continued"))
