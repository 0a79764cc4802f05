"""A problem that trains in a second: an image source in memory, an experiment on it, and faults on demand."""

from __future__ import annotations

import atexit
import copy
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from rich.console import Console
from torch import Tensor
from torch.utils.data import get_worker_info

from augment.dual import DualAugment
from augment.views import Views
from distill.config import merge_trees, validate_tree
from distill.data.base import UNLABELED, Sample, Samples, Source, Split
from distill.experiments.distillation import DistillationExperiment as Experiment
from distill.experiments.target_domain import TargetDomainExperiment
from distill.export.targets.timm_folder import write_timm_folder
from distill.models.features import Features
from distill.models.network import Network
from distill.models.student import Student
from distill.objectives.base import Objective, Targets
from distill.run.context import RunContext
from distill.run.prepare import StudentSpec
from distill.run.runner import finish, run_plan
from distill.run.stage import Ref
from distill.stages.labels_only import LabelsOnly
from distill.stages.linear_probe import FitLinearProbe
from distill.stages.outputs import TrainedProbe, TrainedStudent
from distill.training.fit import FitSummary
from distill.training.module import Distillation
from distill.training.signals import StopSignal

SIZES = {"train": 36, "val": 17, "test": 23}
FIRST = {"train": 0, "val": 1000, "test": 2000}
"""Number of the first image of a split; an image's noise follows from its number."""
STEPS = -(-SIZES["train"] // 8)
"""Steps of an epoch; 4 of the 36 samples come twice in each, other ones every time, to fill the last batch."""


class Blobs(Source):
    """Noise round one of four gray levels, which is the class; the image follows from the id."""

    class Settings(Source.Settings):
        labeled: bool = True
        tested: bool = True
        wrong_label: int = Field(-1, description="sample whose label is out of range")
        pause: float = Field(0.0, description="seconds that a training sample takes in a worker of the loader")

    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.has_split = frozenset({"train", "val", "test"} if settings.tested else {"train", "val"})
        self.classes = tuple("abcd") if settings.labeled else ()

    def split(self, name: Split) -> Samples:
        return BlobSamples(name, self.settings, self.channels)


class BlobSamples:
    def __init__(self, name: Split, settings: Blobs.Settings, channels: int):
        self.pause, self.shape = settings.pause if name == "train" else 0, (32, 32, channels)
        self.first = FIRST[name]
        self.ids = [f"{name}/{index:03d}" for index in range(SIZES[name])]
        self.labels = [index % 4 if settings.labeled else UNLABELED for index in range(SIZES[name])]
        if settings.wrong_label >= 0:
            self.labels[settings.wrong_label] = 9

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        if self.pause and get_worker_info() is not None:
            time.sleep(self.pause)
        noise = np.random.default_rng(self.first + index).normal(50 + 40 * (index % 4), 20, self.shape)
        return Sample(noise.clip(0, 255).astype(np.uint8), self.labels[index], self.ids[index])


class Poison(Objective):
    """A term that is zero but for one step, at which its value or its gradient is something else."""

    class Settings(Objective.Settings):
        step: int
        value: str = "0"  # as text, since a config takes no NaN
        gradient: str = "0"

    reads_teacher = False
    settings: Settings

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.steps = 0

    def loss(self, student: Features, teacher: Features | None, batch: Targets) -> Tensor:
        assert student.logits is not None
        here, self.steps = self.steps == self.settings.step, self.steps + 1
        value, gradient = (self.settings.value, self.settings.gradient) if here else ("0", "0")
        return _Given.apply(student.logits, float(value), float(gradient))


class _Given(torch.autograd.Function):
    """``value``, with ``gradient`` for every input whatever the value is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: float, gradient: float) -> Tensor:
        ctx.shape, ctx.gradient = x.shape, gradient
        return x.new_tensor(value)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return outer.new_full(ctx.shape, ctx.gradient), None, None


def network(output: Path, name: str, seed: int = 0, **model_args: float) -> dict[str, Any]:
    """Settings of a network of the four classes, which lies in a timm folder: random, but always the same."""
    import timm

    folder = output / f"{name}-{seed}-{len(model_args)}"
    if not folder.exists():
        made = _networks() / folder.name
        if not made.exists():
            torch.manual_seed(seed)
            model = timm.create_model(name, num_classes=4, **model_args)
            write_timm_folder(made, model, origin="random", model_args=model_args)
        shutil.copytree(made, folder)
    return {"model": f"local-dir:{folder}", "size": 32}


@cache
def _networks() -> Path:
    """Folder of the networks that this process has made; a test gets copies."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def whole(output: Path) -> dict[str, Any]:
    """A student trained whole, with everything that makes a step depend on more than weights."""
    return {
        "network": network(output, "test_efficientnet", drop_rate=0.2, drop_path_rate=0.2),
        "deltas": [],
        "train": "full",
    }


def tree(output: Path, **changes: Any) -> dict[str, Any]:
    """An experiment as a config file would hold it: AdamW, a schedule and an average, two epochs of five steps."""
    plain = {
        "name": "toy",
        "output": str(output),
        "data": {"source": {"type": "toy_training:Blobs"}, "batch_size": 8, "size": 32, "workers": 0},
        "augment": {"policy": "independent", "student": ["RandomHorizontalFlip", {"type": "ColorJitter", "hue": 0.1}]},
        "teacher": {"networks": [network(output, "test_resnet")]},
        "student": {
            "network": network(output, "test_efficientnet"),
            "deltas": [{"type": "low_rank", "rank": 2}],
        },
        "objectives": [{"type": "ce"}, {"type": "kd"}, {"type": "icd", "dim": 8}],
        "training": {
            "epochs": 2,
            "optimizer": {"lr": 0.01},
            "schedule": {"warmup": 0.5},
            "ema": 0.9,
            "log_every": 2,
            "accelerator": "cpu",
        },
        "export": {"verify_images": 8},
    }
    return merge_trees(plain, changes)


def experiment(output: Path, **changes: Any) -> Experiment:
    settings = validate_tree(tree(output, **changes), "toy")
    assert isinstance(settings, Experiment | TargetDomainExperiment)
    return settings  # type: ignore[return-value]


@dataclass
class Watched:
    """What happened in a fit: the samples of each step, and all trained tensors after the last one."""

    seen: list[tuple[int, list[int]]] = field(default_factory=list)
    """(epoch, ids) of every step."""
    student: Student | None = None
    summary: FitSummary | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        assert self.student is not None
        return self.student.own_state()

    def ids(self, epoch: int) -> list[int]:
        return [id for at, ids in self.seen if at == epoch for id in ids]


Fault = Callable[[Distillation], None]


def raising(number: signal.Signals, step: int) -> Fault:
    """A real signal to this process, in the middle of a step."""
    return lambda module: os.kill(os.getpid(), number) if module.global_step == step else None


@contextmanager
def watching(fault: Fault | None, seen: Callable[[int, list[int]], None]) -> Iterator[None]:
    """Within it, every training step of this process reports its epoch and ids, and then suffers ``fault``."""
    step = Distillation.training_step

    def watched(module: Distillation, batch: Any, index: int) -> Tensor:
        loss = step(module, batch, index)
        seen(module.current_epoch, batch.ids.tolist())
        if fault is not None:
            fault(module)
        return loss

    Distillation.training_step = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distillation.training_step = step  # type: ignore[method-assign]


Made = tuple[int, list[int], Views]
"""Epoch, ids and views of a batch."""


@contextmanager
def noting_views(made: list[Made]) -> Iterator[None]:
    """Within it, every batch whose views are made in this process is noted in ``made``."""
    forward = DualAugment.forward

    def noted(augment: DualAugment, images: Tensor, ids: Tensor, epoch: int, **parts: bool) -> Views:
        views = forward(augment, images, ids, epoch, **parts)
        made.append((epoch, ids.tolist(), views))
        return views

    DualAugment.forward = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        DualAugment.forward = forward  # type: ignore[method-assign]


def all_views(views: Views) -> list[Tensor]:
    """The teacher's, then the student's."""
    return [view for network in views.teacher for view in network] + list(views.student)


def student_fit(settings: Experiment, folder: Path, fault: Fault | None = None, into: Watched | None = None) -> Watched:
    """The experiment's student stage in ``folder``, as ``run`` does it; what was seen is in ``into`` also if it fails.

    ``fault`` is called in the middle of every step.
    """
    watched = into if into is not None else Watched()

    def noted(module: Distillation) -> None:
        watched.student = module.step.student
        if fault is not None:
            fault(module)

    with watching(noted, lambda *step: watched.seen.append(step)), StopSignal() as stop:
        context = RunContext.of(settings, stop)
        fit_teachers(settings, context)
        for before in [stage for stage in settings.plan() if stage.name in ("source", "statistics")]:
            context.outputs[before.name] = before.run(context, folder.with_name(f"{folder.name}-{before.name}"))
        stage = next(stage for stage in settings.plan() if stage.name == "student")
        trained = stage.run(context, folder)
        watched.student, watched.summary = trained.student, trained.fit
    return watched


@dataclass(frozen=True)
class StraightFit:
    """What a fit that nothing stopped came to."""

    seen: list[tuple[int, list[int]]]
    weights: dict[str, Tensor]
    summary: FitSummary

    def ids(self, epoch: int) -> list[int]:
        return [id for at, ids in self.seen if at == epoch for id in ids]


_straight: dict[str, StraightFit] = {}


def straight_fit(settings: Experiment) -> StraightFit:
    """:func:`student_fit` of the experiment, to compare others with; a process trains equal experiments once."""
    key = settings.model_dump_json().replace(str(settings.output), "OUTPUT")
    if key not in _straight:
        with tempfile.TemporaryDirectory() as name:
            watched = student_fit(settings, Path(name) / "fit")
        assert watched.summary is not None
        weights = {name: tensor.detach().clone() for name, tensor in watched.weights.items()}
        _straight[key] = StraightFit(watched.seen, weights, watched.summary)
    return copy.deepcopy(_straight[key])


def fit_teachers(settings: Experiment, context: RunContext) -> list[Network]:
    """The teacher's networks, as a run makes them: fitted if the settings say so and they are not fitted yet."""
    outputs = [finish(stage, context, context.root) for stage in settings.plan_teacher()]
    return [network for output in outputs for network in output.networks]


def control_fit(settings: Experiment, context: RunContext, steps: int, folder: Path) -> TrainedStudent:
    """The control "labels only" of a student that took so many steps."""
    context.outputs["student"] = SimpleNamespace(fit=SimpleNamespace(steps=steps))
    like = Ref("student", TrainedStudent)
    parts = (settings.student, settings.augment, settings.training, settings.objectives)
    trained = LabelsOnly("labels-only", *parts, like).run(context, folder)
    assert trained is not None
    return trained


def probe_fit(settings: Experiment, context: RunContext, folder: Path) -> TrainedProbe:
    trained = FitLinearProbe("linear-probe", settings.student.network).run(context, folder)
    assert trained is not None
    return trained


def run(settings: Experiment, console: Console | None = None) -> Path:
    """The whole run; returns its folder."""
    return run_plan(settings, settings.plan(), settings.model_dump(mode="json"), console=console)


def student_spec(settings: Experiment, context: RunContext) -> StudentSpec:
    return StudentSpec(settings.student, settings.seed, len(context.data.classes))


def assert_bit_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys() and actual
    different = [name for name in actual if not torch.equal(actual[name], expected[name])]
    assert not different, different


FITS_IN_RANKS: dict[str, dict[str, Any]] = {
    "ce kd icd": {},
    "head unused": {"objectives": [{"type": "pooled"}], "training": {"epochs": 1}},
    "few labels": {
        "data": {"labels_per_class": 1},
        "objectives": [{"type": "ce"}, {"type": "kd"}],
        "training": {"epochs": 1},
    },
    "weighed": {
        "teacher": {
            "networks": [
                {"model": "test_resnet", "pretrained": False, "size": 32, "labels": {"a": 0, "b": [1, 2], "c": 3}},
                {"model": "test_efficientnet", "pretrained": False, "size": 32, "labels": dict(zip("abcd", range(4)))},
            ],
            "weighting": {"type": "learned", "every": 2, "images": 20},
        },
        "training": {"curriculum": {"epochs": 2}},
        "augment": {"ramp": {"epochs": 2, "start": 0.3}},
    },
    "accumulated": {"training": {"accumulate": 2, "epochs": 1}},
    "two domains": {
        "kind": "target_domain",
        "data": {
            "target": {
                "type": "augmented",
                "source": {"type": "toy_training:Blobs"},
                "operations": [{"type": "RandomInvert", "p": 1.0}],
                "size": 32,
            }
        },
        "augment": {"policy": "weak_teacher", "student": ["RandomHorizontalFlip"]},
        "teacher": {"networks": [], "ema": {"decay": 0.9, "normalizations": ["source", "target"]}},
        "student": {"deltas": [{"type": "statistics"}, {"type": "low_rank", "rank": 2}]},
        "objectives": [{"type": "ce"}, {"type": "self_training", "threshold": 0.3}, {"type": "mcc"}, {"type": "coral"}],
        "training": {"epochs": 1},
    },
    "multicrop": {
        "augment": {"policy": "multicrop", "local": [{"crops": 2}]},
        "objectives": [{"type": "kd"}],
        "training": {"epochs": 1},
    },
    # Two steps: rounding turns differences in the last digits into larger ones, so only the last rounds activations.
    "quantized": {"training": {"epochs": 1, "quantize": {"epochs": 0.4, "observe": 1, "weights": 8, "activations": 8}}},
}
"""Fits that must come out the same in one rank and in two."""

PREPARED_IN_RANKS: dict[str, list[dict[str, Any] | str]] = {
    "low_rank, dora": [
        {"type": "low_rank", "ranks": {"budget": "6KB", "importance": "fisher"}, "sites": ["blocks.[12].*"]},
        {"type": "dora", "ranks": {"budget": "6KB", "importance": "fisher"}, "sites": ["conv_stem", "blocks.3.*"]},
    ],
    "feature change": [
        {"type": "low_rank", "ranks": {"budget": "6KB", "importance": "feature_change", "start": "warm_up"}}
    ],
    "halrp": [{"type": "halrp", "ranks": {"alpha": 0.9}, "kinds": ["conv"]}, "bias"],
    "adalora, sparse": [
        {"type": "adalora", "rank": 4, "interval": 2, "budget": "8KB", "kinds": ["conv"]},
        {"type": "sparse", "density": 0.05, "by": "gradient", "kinds": ["depthwise"]},
    ],
    "ladder": [{"type": "ladder", "samples": 24}],
}
"""``student.deltas`` that are chosen from the data: the same in one rank and in two."""
