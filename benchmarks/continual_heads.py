"""Closed-form heads on the features of a frozen network, over orders of the classes: a part of ``continual.py``.

The features of each image are computed once and kept in the output folder. All training images are used: heads in
closed form have no choice to make on held-out ones. The stages that fit them are those of a run. The joint and the
sequential linear head are trained by the same optimizer for as many passes over the images, the one on all tasks
together, the other on one after the other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import safetensors
import safetensors.torch
import torch
from continual_data import LITE0, DataSet, data_tree
from rich.console import Console

from distill.config import validate_tree
from distill.continual.heads.shared import HeadSums
from distill.continual.measured import measured
from distill.continual.open_stream import stream_in
from distill.continual.scores import TaskScores
from distill.continual.task import Task, keyed_seed
from distill.data.base import Split
from distill.experiments.continual import ContinualExperiment
from distill.experiments.plans.stream import plan_stream
from distill.files import write_atomic
from distill.run.context import RunContext
from distill.run.predict import predict_pooled
from distill.stages.extract_features import ExtractFeatures, TaskFeatures
from distill.stages.fit_heads import FitHeads
from distill.stages.outputs import pretrained_networks
from distill.stages.stream_controls import ControlHead, train_on
from distill.training.evaluate import Predictions
from distill.training.signals import StopSignal

SPLITS: tuple[Split, ...] = ("train", "test")
HEADS = ("slda", "ridge", "ncm")
SEQUENTIAL, JOINT = "sequential head", "joint head"


@dataclass(frozen=True)
class Frozen:
    """Data and the features of all its images."""

    context: RunContext
    splits: Mapping[Split, Predictions]
    seconds: float
    """Of computing the features."""


def experiment(data: DataSet, folder: Path, out: Path, order: int) -> ContinualExperiment:
    """The stream of a data set, with the heads and nothing else."""
    tree = {
        "kind": "continual",
        "name": f"heads-{data.name}",
        "output": str(out),
        "data": data_tree(data, folder, out, 0.0),
        "stream": {"type": "classes", "count": data.tasks, "order": "keyed", "order_seed": order},
        "heads": [{"type": head} for head in HEADS],
        "inference": [],
        "controls": {"heads": False},
        "student": {"network": {"model": LITE0, "size": data.size}, "deltas": []},
        "objectives": [{"type": "ce"}],
    }
    made = validate_tree(tree, data.name)
    assert isinstance(made, ContinualExperiment)
    return made


def frozen(made: ContinualExperiment, stop: StopSignal, console: Console) -> Frozen:
    """The features of all images, from the output folder or computed now."""
    context = RunContext.of(made, stop, console)
    about = {"data": context.data.fingerprint(), "network": made.student.network.model_dump(mode="json")}
    about = json.loads(json.dumps(about, default=str))
    path = made.output / "features" / f"{made.name}.safetensors"
    if path.is_file():
        with safetensors.safe_open(path, framework="pt") as file:
            known = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        if json.loads(known["about"]) == about:
            kept = {split: Predictions(*(tensors[f"{split}/{n}"] for n in range(3))) for split in SPLITS}
            return Frozen(context, kept, float(known["seconds"]))
    network = pretrained_networks([made.student.network], made.seed)[0]
    begun = time.perf_counter()
    splits: dict[Split, Predictions] = {}
    for split in SPLITS:
        train = split == "train"
        loader = context.labeled_loader(network.input) if train else context.loader(split, network.input)
        splits[split] = predict_pooled(context, network, loader)
        stop.raise_if_received()
    seconds = time.perf_counter() - begun
    tensors = {
        f"{split}/{n}": tensor.contiguous()
        for split, of_split in splits.items()
        for n, tensor in enumerate((of_split.logits, of_split.labels, of_split.ids))
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, safetensors.torch.save(tensors, {"about": json.dumps(about), "seconds": str(seconds)}))
    return Frozen(context, splits, seconds)


def learn(made: ContinualExperiment, of_all: Frozen) -> dict[str, Any]:
    """Fit the heads task after task, by the stages of a run; the linear ones beside them.

    Args:
        made: the stream, whose order is its own.
        of_all: data and features.

    Returns:
        Sizes, and model → setting → its metrics.
    """
    context = of_all.context
    tasks = stream_in(made).tasks(context.data)
    features = {task.name: features_of(task, of_all) for task in tasks}
    collected: list[TaskScores] = []
    made.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=made.output) as folder:
        for stage in plan_stream(made, tasks):
            if isinstance(stage, ExtractFeatures):
                context.outputs[stage.name] = features[stage.task.name]
            elif isinstance(stage, FitHeads):
                context.outputs[stage.name] = fitted = stage.run(context, Path(folder) / stage.name)
                collected.append(fitted.scores)
    collected += linear_heads(list(features.values()), made.seed)
    result = measured([task.name for task in tasks], collected)
    models: dict[str, Any] = {}
    for model in result.models:
        metrics = model.metrics
        models.setdefault(model.name, {})[model.setting] = {
            "last": metrics.accuracy_micro,
            "mean": metrics.average_incremental_accuracy,
            "forgetting": None if math.isnan(metrics.forgetting) else metrics.forgetting,
            "seconds": model.seconds,
        }
    sizes = {split: len(of_all.splits[split].labels) for split in SPLITS}
    return {"sizes": sizes, "classes": len(context.data.classes), "tasks": len(tasks), "models": models}


def features_of(task: Task, of_all: Frozen) -> TaskFeatures:
    """The features of a task's images, with labels that count its classes."""
    classes = of_all.context.data.classes
    places = torch.tensor([task.classes.index(name) if name in task.classes else -1 for name in classes])
    splits: dict[Split, Predictions] = {}
    for split, whole in of_all.splits.items():
        labels = places[whole.labels]
        rows = labels >= 0
        splits[split] = Predictions(whole.logits[rows], labels[rows], whole.ids[rows])
    return TaskFeatures(task, splits, 0.0)


def linear_heads(outputs: Sequence[TaskFeatures], seed: int) -> list[TaskScores]:
    """Scores of the linear head that is trained on one task after the other, and of the one on all together."""
    width = outputs[0].evaluation.logits.shape[1]
    empty = ControlHead((), torch.zeros(0, width), torch.zeros(0))
    head, scores = empty, []
    for number, output in enumerate(outputs, 1):
        begun = time.perf_counter()
        head = train_on(head, output, keyed_seed(seed, f"{output.task.name}/{SEQUENTIAL}"))
        seconds = {SEQUENTIAL: time.perf_counter() - begun}
        of_tasks = head.scores(outputs[:number], "class")
        scores.append(TaskScores(task=output.task.name, scores={SEQUENTIAL: of_tasks}, seconds=seconds))
    begun = time.perf_counter()
    joint = train_on(empty, together(outputs), keyed_seed(seed, JOINT))
    seconds = {JOINT: time.perf_counter() - begun}
    last = outputs[-1].task.name
    return [*scores, TaskScores(task=last, scores={JOINT: joint.scores(outputs, "class")}, seconds=seconds)]


def together(outputs: Sequence[TaskFeatures]) -> TaskFeatures:
    """The training features of all tasks as those of one."""
    classes = tuple(name for output in outputs for name in output.task.classes)
    parts = [output.splits["train"] for output in outputs]
    first = torch.tensor([len(output.task.classes) for output in outputs]).cumsum(0)
    offsets = [0, *first.tolist()]
    train = Predictions(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.labels + offset for part, offset in zip(parts, offsets)]),
        torch.cat([part.ids for part in parts]),
    )
    return TaskFeatures(Task("all", classes, {}), {"train": train}, 0.0)


def seconds_of_sums(of_all: Frozen, made: ContinualExperiment, rounds: int, images: int = 1000) -> list[float]:
    """Seconds of adding the features of ``images`` images to the sums of the heads, once for each round."""
    train = of_all.splits["train"]
    features, labels = train.logits[:images], train.labels[:images]
    heads = [settings.component(settings) for settings in made.heads]  # type: ignore[misc]
    seconds = []
    for number in range(rounds + 1):
        sums = HeadSums(heads, features.shape[1])
        begun = time.perf_counter()
        sums.add(features, labels, list(of_all.context.data.classes))
        if number:  # the first one warms up
            seconds.append((time.perf_counter() - begun) * 1000 / len(labels))
    return seconds
