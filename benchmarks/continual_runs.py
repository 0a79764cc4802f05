"""Whole runs of streams for ``continual.py``: of a config with changes, continued where they stopped, and timed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from lab import Lab
from rich.console import Console

from distill.config import validate_tree
from distill.experiments.continual import ContinualExperiment
from distill.run import prepare
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.folder import RECORD
from distill.run.runner import run_plan
from distill.stages.evaluate_task import EvaluateTask
from distill.stages.extract_features import ExtractFeatures
from distill.stages.fit_heads import FitHeads
from distill.stages.stream_controls import StreamControls
from distill.yaml_tree import apply_override, load_tree, merge_trees

CONFIGS = Path(__file__).parents[1] / "configs" / "continual"
SETTINGS = {
    "task": "task-incremental",
    "class": "class-incremental",
    "domain": "domain-incremental",
    "representation": "representation",
}


class Spent:
    """Seconds inside some functions; a call inside of another one counts once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method, timed."""

        @wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            self._depth += 1
            try:
                return method(*arguments, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - begun

        return timed


USEFUL: tuple[tuple[Any, str], ...] = (
    (FitSpec, "fit"),
    (prepare, "_choices"),
    (RunContext, "predict"),
    (ExtractFeatures, "run"),
    (FitHeads, "run"),
    (EvaluateTask, "run"),
    (StreamControls, "run"),
)
"""Fits, the choice of ranks from warm-ups and gradients, heads, and evaluation."""


@contextmanager
def timing() -> Iterator[Spent]:
    """Within it, the time in fits, heads and evaluation is added up."""
    spent = Spent()
    originals = [(owner, name, getattr(owner, name)) for owner, name in USEFUL]
    for owner, name, method in originals:
        setattr(owner, name, spent.around(method))
    try:
        yield spent
    finally:
        for owner, name, method in originals:
            setattr(owner, name, method)


def stream_run(lab: Lab, part: str, config: str, changes: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """The result of a run: from the file of results, or of a run that is made or continued now.

    Args:
        lab: its ``out`` holds the runs.
        part: of the benchmark.
        config: file in ``configs/continual``.
        changes: laid over it.
        overrides: ``KEY=VALUE``, after the changes.

    Returns:
        ``metrics``: name → value, as in the run's ``results.json``; ``final``: "model, setting" → task → accuracy after
        the last task; ``tasks``, in their order; ``seconds``, and those of them in fits, heads and evaluation
        (``useful``), None if the run was continued.
    """
    tree = merge_trees(load_tree(CONFIGS / config), changes)
    for override in overrides:
        apply_override(tree, override)
    name = f"{part}-{hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]}"
    tree |= {"name": name, "output": str(lab.given.out / "runs")}
    key = {"part": part, "config": config, "changes": merge_trees(changes, {"data": None}), "set": overrides}
    return lab.once(key, lambda: finished(lab, tree))


def finished(lab: Lab, tree: dict[str, Any]) -> dict[str, Any]:
    """Make or continue a run, and read its results."""
    made = validate_tree(tree, tree["name"])
    assert isinstance(made, ContinualExperiment)
    folder = made.output / made.name
    record = folder / RECORD
    status = json.loads(record.read_text())["status"] if record.is_file() else None
    seconds = useful = None
    if status != "finished":
        begun = time.perf_counter()
        with timing() as spent:
            stages = made.plan()
            values = made.model_dump(mode="json")
            run_plan(made, stages, values, resume=folder if status else False, console=Console(quiet=True))
        if status is None:
            seconds, useful = time.perf_counter() - begun, spent.seconds
    result = results(folder)
    took = "" if seconds is None else f" in {seconds:.0f} s"
    lab.console.print(f"{tree['name']}: {len(result['tasks'])} tasks{took}", highlight=False)
    return {**result, "seconds": seconds, "useful": useful}


def results(folder: Path) -> dict[str, Any]:
    """What :func:`stream_run` returns of a finished run."""
    content = json.loads((folder / "results.json").read_text())
    metrics = {each["name"]: each["value"] for each in content["results"]}
    titles = {title: setting for setting, title in SETTINGS.items()}
    final, tasks = {}, []
    for matrix in content["summary"]["matrices"]:
        setting = titles.get(matrix["section"].rpartition(" ")[2])
        if setting is not None:
            tasks = matrix["columns"]
            final[f"{matrix['title']}, {setting}"] = dict(zip(tasks, matrix["values"][-1]))
    return {"metrics": metrics, "final": final, "tasks": tasks}
