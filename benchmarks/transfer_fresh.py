"""The part ``fresh`` of ``transfer.py``: the mean of several normalizations, on shifts that had no part in its idea."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from transfer_lab import CONFIGS, Figure, Lab, digest, figure

from distill.config import validate_tree
from distill.run.context import RunContext
from distill.run.runner import finish
from distill.stages.aligned_source import MeanModel, predict_all
from distill.yaml_tree import load_tree


def _op(name: str, **settings: Any) -> dict[str, Any]:
    return {"type": name, "p": 1.0, **settings}


NOISE, STRONG_NOISE = (_op("GaussianNoise", std=std) for std in ([0.1, 0.2], [0.3, 0.4]))
BLUR = _op("RandomGaussianBlur", kernel_size=[5, 5], sigma=[0.5, 1.0])
SHIFTS: dict[str, list[dict[str, Any]]] = {
    "noise": [NOISE],
    "strong noise": [STRONG_NOISE],
    "dark": [_op("ColorJitter", brightness=[0.3, 0.5])],
    "flat, noise": [_op("ColorJitter", contrast=[0.3, 0.5]), NOISE],
    "rotated": [_op("RandomAffine", degrees=[20, 30])],
    "rotated, noise": [_op("RandomAffine", degrees=[15, 25]), NOISE],
    "small": [_op("RandomAffine", degrees=0, scale=[0.6, 0.7])],
    "small, blurred, noise": [_op("RandomAffine", degrees=0, scale=[0.65, 0.8]), BLUR, NOISE],
    "inverted": [_op("RandomInvert")],
    "inverted, blurred": [_op("RandomInvert"), BLUR],
}
"""Name → operations on every image of scikit-learn's digits."""
CONTROLS = ("statistics", "standardized", "adabn", "aligned", "mean")
SOURCE, STANDARDIZED, ADABN, ALIGNED = "source only", "standardized", "AdaBN", "aligned statistics"
BOTH, TEACHER = "mean of both", "source and aligned"
ROWS = {
    SOURCE: "source_only",
    STANDARDIZED: "standardized",
    ADABN: "adabn",
    ALIGNED: "aligned",
    BOTH: "mean_of_both",
    TEACHER: "source_and_aligned",
}
"""Row → end of the figure's name."""


def fresh(lab: Lab) -> Iterator[Figure]:
    """Accuracy of each normalization and of the means over all shifts, and on how many the means are better."""
    chosen = dict(list(SHIFTS.items())[:2]) if lab.given.quick else SHIFTS
    lines = {name: _measured(lab, name, operations) for name, operations in chosen.items()}
    detail = f"digits, {len(chosen)} shifts of the test images ({'; '.join(chosen)}), the student of quick.yaml, seed 0"
    for row, own in ROWS.items():
        yield figure(
            f"fresh_{own}", [line[row] for line in lines.values()], "fraction", f"{detail}; mean over the shifts"
        )
    for row, of in ((BOTH, (STANDARDIZED, ALIGNED)), (TEACHER, (SOURCE, ALIGNED))):
        name = f"fresh_{ROWS[row]}"
        over_best = [line[row] - max(line[each] for each in of) for line in lines.values()]
        over_mean = [line[row] - sum(line[each] for each in of) / 2 for line in lines.values()]
        wins = sum(gain > 0 for gain in over_best)
        parts = " and ".join(of)
        yield figure(f"{name}_best_of", [wins / len(chosen)], "fraction", f"shifts on which it beats {parts} both")
        yield figure(f"{name}_minus_better", over_best, "fraction", f"its accuracy minus the better of {parts}")
        yield figure(f"{name}_minus_average", over_mean, "fraction", f"its accuracy minus the average of {parts}")


def _measured(lab: Lab, name: str, operations: list[dict[str, Any]]) -> dict[str, float]:
    key = {"part": "fresh", "shift": operations, "content": digest(load_tree(CONFIGS / "quick.yaml")), "rows": [*ROWS]}
    return lab.once(key, lambda: _accuracies(lab, operations))


def _accuracies(lab: Lab, operations: list[dict[str, Any]]) -> dict[str, float]:
    tree = load_tree(CONFIGS / "quick.yaml")
    tree["data"]["target"] = {**tree["data"]["target"], "operations": operations}
    tree["output"] = str(lab.given.out / "runs")
    settings = validate_tree(tree, "fresh")
    stages = {stage.name: stage for stage in settings.plan()}
    context = RunContext.of(settings, lab.stop)
    source = finish(stages["source"], context, context.root)  # once for all shifts
    for control in CONTROLS:
        stage = stages[control]
        context.outputs[control] = stage.run(context, Path(lab.given.out) / "runs" / "fresh")
    models = [source, *(context.outputs[control] for control in CONTROLS[1:])]
    within = replace(context, data=context.data.target_domain())
    made = predict_all(within, models, "test")
    both = MeanModel(TEACHER, "", (source, context.outputs["aligned"]))
    made[TEACHER] = both.of([made[SOURCE], made[ALIGNED]])
    return {name: float(own.accuracy()) for name, own in made.items()}
