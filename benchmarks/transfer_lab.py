"""Shared by the parts of ``transfer.py``: bars, figures, whole runs that continue where they stopped, the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_lab import Lab, NotMeasuredError
from measure import Row
from rich import box
from rich.console import Console
from rich.table import Table

from distill.config import validate_tree
from distill.report.summary import Machine
from distill.run.folder import RECORD
from distill.run.runner import run_plan
from distill.yaml_tree import apply_override, load_tree, merge_trees

__all__ = ["Figure", "Lab", "NotMeasuredError", "figure", "page", "run", "seeds", "show"]

CONFIGS = Path(__file__).parents[1] / "configs" / "transfer"
BARS: dict[str, tuple[str, float]] = {
    "usps_student": ("≥", 0.75),
    "usps_gain": ("≥", 0.08),
    "sketch_student": ("≥", 0.48),
    "sketch_source_free_minus_adabn": ("≥", 0.03),
    "ema_teacher_memory_over_delta": ("≤", 2.0),
    "ema_teacher_step": ("≤", 1.03),
}
"""Figure → what it must be. All others are shown without a verdict."""


@dataclass(frozen=True)
class Figure:
    """A measured figure: its mean, smallest and largest value over seeds.

    Args:
        row: name, mean, unit, smallest, largest.
        detail: over what, and of which sizes.
    """

    row: Row
    detail: str

    @property
    def bar(self) -> str:
        """The bar, and whether it is reached; empty without one."""
        if self.row.name not in BARS:
            return ""
        sign, limit = BARS[self.row.name]
        reached = self.row.value >= limit if sign == "≥" else self.row.value <= limit
        return f"{sign} {limit:g} {'reached' if reached else 'missed'}"


def figure(name: str, values: Sequence[float], unit: str, detail: str) -> Figure:
    """A figure of several values of the same thing."""
    return Figure(Row(name, mean(values), unit, min(values), max(values)), detail)


def seeds(lab: Lab, default: Sequence[int] = (0, 1, 2)) -> list[int]:
    if lab.given.seeds:
        return [int(seed) for seed in lab.given.seeds.split(",")]
    return list(default[:1] if lab.given.quick else default)


def run(lab: Lab, part: str, config: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The result of a run: from the file of results, or of a run that is made or continued now.

    Args:
        lab: its ``out`` holds the runs, its options the overrides.
        part: of the benchmark.
        config: file in ``configs/transfer``.
        changes: laid over it.

    Returns:
        ``rows``: name of a model → accuracy; ``metrics``: name → value; ``folder`` of the run.
    """
    tree = merge_trees(load_tree(CONFIGS / config), changes)
    for override in lab.given.set:
        apply_override(tree, override)
    name = f"{part}-{hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:8]}"
    tree |= {"name": name, "output": str(lab.given.out / "runs")}
    key = {"part": part, "config": config, "changes": merge_trees(changes, {"data": None}), "set": lab.given.set}
    return lab.once(key, lambda: _finished(lab, tree))


def _finished(lab: Lab, tree: dict[str, Any]) -> dict[str, Any]:
    made = validate_tree(tree, tree["name"])
    folder = made.output / made.name
    record = folder / RECORD
    status = json.loads(record.read_text())["status"] if record.is_file() else None
    if status != "finished":
        run_plan(made, made.plan(), made.model_dump(mode="json"), resume=folder if status else False)
    content = json.loads((folder / "results.json").read_text())
    rows = {row["name"]: row["accuracy"] for row in content["summary"]["rows"]}
    metrics = {each["name"]: each["value"] for each in content["results"]}
    seconds = content["summary"]["seconds"]
    return {"rows": rows, "metrics": metrics, "seconds": seconds, "folder": str(folder)}


def show(console: Console, title: str, rows: list[Figure]) -> None:
    """Print the figures of a part."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("figure", no_wrap=True)
    for heading in ("mean", "smallest … largest", "unit", "bar"):
        table.add_column(heading, justify="left" if heading in ("unit", "bar") else "right", no_wrap=True)
    for each in rows:
        color = "red" if each.bar.endswith("missed") else "green"
        bar = f"[{color}]{each.bar}[/]" if each.bar else ""
        table.add_row(each.row.name, number(each.row.value), spread(each.row), each.row.unit, bar)
    console.print(table)


def number(value: float) -> str:
    return f"{value:.4g}"


def spread(row: Row) -> str:
    return "" if row.low == row.high else f"{number(row.low)} … {number(row.high)}"


def page(title: str, script: str, measured: dict[str, list[Figure]]) -> str:
    """The page of results: a table for each part, with what it was measured on."""
    where = Machine.here()
    about = (
        f"The parts are described at the top of `{script}`. Mean over seeds; accuracies are fractions of test images."
    )
    lines = [f"# {title}", "", about]
    for name, rows in measured.items():
        lines += [
            "",
            f"## {name}",
            "",
            "| figure | mean | smallest … largest | unit | bar |",
            "|---|---:|---:|---|---|",
        ]
        lines += [
            f"| `{each.row.name}` | {number(each.row.value)} | {spread(each.row)} | {each.row.unit} | {each.bar} |"
            for each in rows
        ]
        lines.append("")
        lines += [f"- {detail}" for detail in dict.fromkeys(each.detail for each in rows if each.detail)]
    lines += [
        "",
        f"Machine: {where.gpu or where.cpu}, {where.threads} thread(s), Python {where.python}, torch {where.torch}, "
        f"timm {where.timm}.",
    ]
    return "\n".join(lines) + "\n"
