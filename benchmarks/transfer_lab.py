"""Shared by the parts of ``transfer.py``: bars, and whole runs that continue where they stopped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from lab import Bars, Figure, Lab, figure_with, finished_run, seeds

from distill.config import validate_tree
from distill.yaml_tree import apply_override, load_tree, merge_trees

__all__ = ["CONFIGS", "Figure", "Lab", "digest", "figure", "run", "seeds"]

CONFIGS = Path(__file__).parents[1] / "configs" / "transfer"
BARS: Bars = {
    "usps_student": ("≥", 0.75),
    "usps_gain": ("≥", 0.08),
    "sketch_student": ("≥", 0.48),
    "sketch_source_free_minus_adabn": ("≥", 0.03),
    "offsite_plugged_minus_probe": ("≥", 0.0),
    "offsite_onsite_minus_plugged": ("≤", 0.015),
    "fewshot_5way_1shot": ("≥", 0.77),
    "fewshot_5way_5shot": ("≥", 0.92),
    "episodes_seconds": ("≤", 20.0),
    "text_definitions_minus_names_top5": ("≥", 0.0),
    "text_student_minus_conse": ("≥", 0.02),
    "ema_teacher_memory_over_delta": ("≤", 2.0),
    "ema_teacher_step": ("≤", 1.03),
}

figure = figure_with(BARS)


def digest(tree: dict[str, Any]) -> str:
    """Of a config's content: a result of another content is not shown for this one."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]


def run(lab: Lab, part: str, config: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The result of a run: from the file of results, or of a run that is made or continued now.

    Args:
        lab: its ``out`` holds the runs, its options the overrides.
        part: of the benchmark.
        config: file in ``configs/transfer``.
        changes: laid over it.

    Returns:
        ``rows``: name of a model → accuracy; ``measures``: the same → name → value; ``metrics``: name → value;
        ``seconds``: stage → wall time; ``trained``: name of a model → wall time of its training; ``folder`` of the run.
    """
    plain = load_tree(CONFIGS / config)
    tree = merge_trees(plain, changes)
    for override in lab.given.set:
        apply_override(tree, override)
    name = f"{part}-{digest(tree)}"
    tree |= {"name": name, "output": str(lab.given.out / "runs")}
    key = {"part": part, "config": config, "content": digest(plain)}
    key |= {"changes": merge_trees(changes, {"data": None}), "set": lab.given.set}
    return lab.once(key, lambda: _finished(lab, tree))


def _finished(lab: Lab, tree: dict[str, Any]) -> dict[str, Any]:
    settings = validate_tree(tree, tree["name"])
    folder = finished_run(settings)
    content = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row["accuracy"] for row in content["summary"]["rows"]}
    trained = {row["name"]: row["seconds"] for row in content["summary"]["rows"]}
    metrics = {each["name"]: each["value"] for each in content["results"]}
    seconds = content["summary"]["seconds"]
    measures = {
        row["name"]: {name: own["value"] for name, own in row["measures"].items()} for row in content["summary"]["rows"]
    }
    made = {"rows": rows, "measures": measures, "metrics": metrics, "seconds": seconds, "trained": trained}
    return {**made, "folder": str(folder)}
