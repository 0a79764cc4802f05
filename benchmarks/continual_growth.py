"""How seconds and bytes of a task grow with the number of tasks: a part of ``continual.py``.

Streams of 10 and of 100 tasks of two classes each are learned by a bank, with images of noise, a small network and fits
of two steps, so that what is left is the cost of the stream itself. Seconds of a task are the wall time of all its
stages, from ``run.json``; the first tasks and the last ones of a stream are compared, without the very last, after
which every network is read once more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import numpy as np
import timm
import torch
from continual_lab import figure
from lab import Figure, Lab, finished_run
from pydantic import Field
from rich.console import Console

from distill.config import validate_tree
from distill.data.base import Sample, Samples, Source, Split
from distill.experiments.continual import ContinualExperiment
from distill.export.targets.timm_folder import write_timm_folder
from distill.run.folder import RECORD

NETWORK, SIDE, PER_CLASS = "test_efficientnet", 32, 4
LENGTHS, QUICK = (10, 100), (10, 30)
ENDS = 5
"""Tasks at the beginning and at the end of a stream that are compared."""


class ManyClasses(Source):
    """A few images of noise for each of many classes."""

    class Settings(Source.Settings):
        count: int = Field(description="number of classes")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.has_split = frozenset({"train", "test"})
        digits = len(str(settings.count))
        self.classes = tuple(f"class-{number:0{digits}}" for number in range(settings.count))

    def split(self, name: Split) -> Samples:
        return NoiseOfClasses(name, len(self.classes))


class NoiseOfClasses:
    def __init__(self, name: str, classes: int):
        self.first = 0 if name == "train" else 10**6
        self.ids = [f"{name}/{index:06d}" for index in range(PER_CLASS * classes)]
        self.labels = [index % classes for index in range(PER_CLASS * classes)]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        noise = np.random.default_rng(self.first + index).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        return Sample(noise, self.labels[index], self.ids[index])


def growth(lab: Lab) -> Iterator[Figure]:
    """Seconds and bytes of a task in short and in long streams, without and with inference of the task."""
    lengths = QUICK if lab.given.quick else LENGTHS
    for name, inference in (("", []), ("_inference", [{"type": "ncm"}])):
        lines = [stream(lab, count, inference) for count in lengths]
        shared = f"bank, {NETWORK}, two classes a task, fits of two steps" + (", ncm infers the task" if name else "")
        for line, count in zip(lines, lengths):
            seconds, size = (line[part][-ENDS - 1 : -1] for part in ("seconds", "bytes"))
            yield figure(f"task_seconds{name}_of_{count}", seconds, "s", f"{shared}; {ENDS} tasks before the last")
            yield figure(f"task_bytes{name}_of_{count}", size, "bytes", f"{shared}; files in the run")
        long = lines[-1]["seconds"]
        detail = f"{shared}; medians of {ENDS} tasks before the last and of the first {ENDS}, of {lengths[-1]}"
        yield figure(f"task_seconds{name}_growth", [median(long[-ENDS - 1 : -1]) / median(long[:ENDS])], "×", detail)
        yield figure(f"served_bytes{name}_growth", [served_growth(lines[-1])], "×", detail)


def stream(lab: Lab, count: int, inference: list[dict[str, Any]]) -> dict[str, Any]:
    key = {"part": "growth", "inference": inference, "tasks": count}
    return lab.once(key, lambda: learned(lab, count, inference))


def served_growth(line: dict[str, Any]) -> float:
    """What each of the last tasks adds to the served bytes, over what each of the first ones does."""
    own = np.diff([0, *line["served"]])
    return float(np.median(own[-ENDS:]) / np.median(own[:ENDS]))


def learned(lab: Lab, count: int, inference: list[dict[str, Any]]) -> dict[str, Any]:
    """Learn a stream, and read for each task its seconds, its bytes in the run folder, and what is served after it."""
    made = experiment(lab.given.out, count, inference)
    folder = finished_run(made, Console(quiet=True))
    stages: dict[str, float] = json.loads((folder / RECORD).read_text())["stages"]
    tasks = list(dict.fromkeys(name.partition("/")[0] for name in stages if "/" in name))
    metrics = {each["name"]: each["value"] for each in json.loads((folder / "results.json").read_text())["results"]}
    return {
        "seconds": [sum(s for name, s in stages.items() if name.startswith(f"{task}/")) for task in tasks],
        "bytes": [size_of(folder / task) for task in tasks],
        "served": [metrics[f"student, task: served bytes after {task}"] for task in tasks],
        "rest": {name: s for name, s in stages.items() if "/" not in name},
    }


def experiment(out: Path, count: int, inference: list[dict[str, Any]]) -> ContinualExperiment:
    network = out / NETWORK
    if not network.is_dir():
        torch.manual_seed(0)
        write_timm_folder(network, timm.create_model(NETWORK, num_classes=2), origin="random")
    tree = {
        "kind": "continual",
        "name": f"growth-{count}{'-inference' * bool(inference)}",
        "output": str(out / "runs"),
        "data": {
            "source": {"type": f"{__name__}:ManyClasses", "count": 2 * count},
            "size": SIDE,
            "batch_size": PER_CLASS,
            "workers": 0,
            "val_fraction": 0,
        },
        "stream": {"type": "classes", "count": count},
        "heads": [{"type": "ncm"}] if inference else [],
        "inference": inference,
        "controls": {"heads": False},
        "augment": {"policy": "identical", "student": []},
        "student": {
            "network": {"model": f"local-dir:{network}", "size": SIDE},
            "deltas": [{"type": "low_rank", "rank": 1}],
        },
        "objectives": [{"type": "ce"}],
        "training": {"epochs": 1, "accelerator": "cpu"},
    }
    made = validate_tree(tree, tree["name"])  # type: ignore[arg-type]
    assert isinstance(made, ContinualExperiment)
    return made


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
