"""Shared by the accuracy benchmarks: flowers, views of them, and a file of results to which a stopped run adds."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distill.experiments.distillation import DistillationExperiment
from distill.run.context import RunContext
from distill.run.runner import finish
from distill.stages.outputs import TeacherNetworks, TrainedStudent
from distill.stages.train_student import TrainStudent

STUDENT = "embedded:tf_efficientnet_lite0"
VIEW: tuple[Any, ...] = (
    {"type": "RandomResizedCrop", "scale": [0.35, 1.0]},
    "RandomHorizontalFlip",
    {"type": "ColorJitter", "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.02, "p": 0.8},
)


def data_of(folder: Path, cache: Path, size: int, workers: int) -> dict[str, Any]:
    """The key ``data``: ``train*.parquet`` and ``test*.parquet``, a fifth of train held out, for views of ``size``."""
    files = {split: str(folder / f"{split}*.parquet") for split in ("train", "test")}
    return {
        "source": {"type": "huggingface", "data_files": files, "cache_dir": str(cache)},
        "size": size * 9 // 8,
        "batch_size": 32,
        "workers": workers,
        "val_fraction": 0.2,
    }


def training(epochs: int, lr: float) -> dict[str, Any]:
    """The key ``training``; validation runs after the last epoch only."""
    return {
        "epochs": epochs,
        "optimizer": {"lr": lr, "weight_decay": 0.02},
        "schedule": {"warmup": 0.5},
        "validate_every": epochs,
    }


class Notebook:
    """The results so far, one JSON line each; a line is written when its measurement is finished.

    Raises ``SystemExit`` if ``folder`` holds results that were measured with other options.
    """

    def __init__(self, folder: Path, options: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "results.jsonl"
        first = {"options": options}
        self.lines = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.is_file() else []
        if self.lines and self.lines[0] != first:
            raise SystemExit(f"{self.path} was made with {self.lines[0]['options']}; name another --out")
        if not self.lines:
            self.add(first)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line, so that two processes can add different results to one file."""
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def with_key(self, key: str) -> list[dict[str, Any]]:
        """The lines that have ``key``, in the order in which they were measured."""
        return [line for line in self.lines if key in line]


def percent(values: list[float]) -> str:
    """Mean, and the sample's standard deviation where there are several values."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def tell(console: Console, headings: list[str], rows: list[list[str]], markdown: Path | None) -> None:
    """Print a table, and write it to a file."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for n, heading in enumerate(headings):
        table.add_column(heading, justify="right" if n else "left", no_wrap=n > 0)
    for cells in rows:
        table.add_row(*cells)
    console.print(table)
    if markdown is not None:
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
        markdown.write_text("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


def fit_teacher(experiment: DistillationExperiment, context: RunContext) -> TeacherNetworks:
    """The teacher's networks, fitted if they are not yet; they are added to the context's outputs."""
    outputs = [finish(stage, context, context.root) for stage in experiment.plan_teacher()]
    return TeacherNetworks(
        tuple(network for output in outputs for network in output.networks),
        tuple(fit for output in outputs for fit in output.fits),
    )


def train_student(experiment: DistillationExperiment, context: RunContext, folder: Path) -> TrainedStudent:
    """The experiment's student, trained in ``folder`` as in a run; its teacher is in the context's outputs."""
    [stage] = [stage for stage in experiment.plan() if isinstance(stage, TrainStudent)]
    return stage.run(context, folder)
