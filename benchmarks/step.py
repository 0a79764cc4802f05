"""The time of a training step over that of its networks, the cost of a second view, and the wait for data.

    python benchmarks/step.py [--quick] [--data FOLDER] [--device cuda] [--json FILE]

Teacher: EfficientNet-Lite1 (``--teacher lite2`` for the larger one), student: Lite0 with ImageNet weights, 61 classes,
batch 16, 224 px, fp32, channels_last. Two things are measured by turns, in one process and one run:

**The step** is one iteration of a real fit (``distill.training.fit``): what happens from the moment the loader hands a
batch of uint8 images to Lightning until Lightning asks for the next one. That is both views, the teacher, the
student with low-rank deltas of rank 8 on every layer, CE + KD, backward, clipping, the guard, the fused AdamW, the
schedule, the callbacks and the log row every 20 steps. The batch is in memory already.

**The parts** are the cost of any training loop: ``timm`` teacher forward in eval mode without gradient, plus
``timm`` student forward and backward in train mode, all parameters trainable, on ready-made normalized images. No loss
but the cross-entropy that starts the backward pass, no optimizer, no clipping, no views.

=========================  ==========================================================================================
row                        meaning
=========================  ==========================================================================================
step_over_parts_224        step with identical views (crop and flip) over the parts
step_over_parts_224_whole  the same, full fine-tuning of the student: no deltas, which save part of the backward pass
second_view_cost           step with two independent views by the default chains over one with identical views by the
                           default student chain
default_views_cost         step with two independent views by the default chains over one with identical crop and flip
data_wait_share            part of the time that the loop waits for the loader: 2 workers, JPEGs of 160 px from
                           ``--data`` (a folder with ``train*.parquet``) or generated, batch 32 at 160 px, the default
                           chains; the first log row, in which workers start, is left out
seconds_…                  seconds of each side: parts, identical (crop and flip), default (identical views by the
                           default chain), two_views, and identical_whole for full fine-tuning of the student
=========================  ==========================================================================================

Ratios are of turns right after each other in the same round; shown are their medians and quartiles.
"""

from __future__ import annotations

import argparse
import copy
import csv
import itertools
import logging
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measure import Row, Turns, ratio, row, save, show
from PIL import Image
from rich.console import Console
from torch.nn import functional as F

from augment.dual import AugmentSettings, DualAugment
from augment.recipe import Op
from distill.data.experiment_data import DataSettings, ExperimentData
from distill.data.loader import TrainLoader
from distill.data.reader import Batch
from distill.deltas.low_rank import LowRank
from distill.models.network import Network, NetworkSettings, create_network
from distill.models.settings import LearningSettings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.objectives.ce import CrossEntropy
from distill.objectives.kd import KD
from distill.report.summary import Machine
from distill.training.fit import fit
from distill.training.module import Distillation
from distill.training.settings import OptimizerSettings, TrainingSettings
from distill.training.signals import StopSignal
from distill.training.step import DistillationStep
from distill.training.terms import build_terms, needs_of

CLASSES = 61
TARGETS = {"step_over_parts_224": 1.10, "data_wait_share": 0.05}
OBJECTIVES = (CrossEntropy.Settings(), KD.Settings())
CROP_AND_FLIP = [Op.model_validate("RandomResizedCrop"), Op.model_validate("RandomHorizontalFlip")]
VIEWS = {
    "identical": AugmentSettings(policy="identical", student=CROP_AND_FLIP),
    "default": AugmentSettings(policy="identical"),
    "two_views": AugmentSettings(policy="independent"),
}
PARTS = "parts"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute on two cores")
    parser.add_argument("--teacher", choices=("lite1", "lite2"), default="lite1")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, help="folder with train*.parquet; default: generated JPEGs")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        for measured in (whole_step, waiting):
            with console.status(f"measuring: {measured.__doc__}"):
                rows += measured(given, Path(folder), stop)
    machine = Machine.here()
    data = given.data or "generated JPEGs"
    show(console, f"step, {given.teacher} → lite0, batch {given.batch}, {given.device}, data: {data}", rows, TARGETS)
    device = machine.gpu if given.device == "cuda" else f"{machine.cpu}, {machine.threads} threads"
    versions = f"torch {machine.torch}, timm {machine.timm}, kornia {machine.kornia}, lightning {machine.lightning}"
    console.print(f"{device} · Python {platform.python_version()} · {versions} · seed 0", style="dim", highlight=False)
    if given.json:
        save(given.json, rows)


# --- The step and its parts ---------------------------------------------------------------------------------------


def whole_step(given: argparse.Namespace, folder: Path, stop: StopSignal) -> list[Row]:
    """the step over its parts"""
    rounds = 4 if given.quick else 16
    deltas = timed_fit(given, folder / "deltas", stop, "deltas", tuple(VIEWS), rounds)
    full = timed_fit(given, folder / "full", stop, "full", ("identical",), rounds)
    first, default, second = (deltas[name] for name in VIEWS)
    return [
        ratio("step_over_parts_224", first, deltas[PARTS]),
        ratio("step_over_parts_224_whole", full["identical"], full[PARTS]),
        ratio("second_view_cost", second, default),
        ratio("default_views_cost", second, first),
        *(row(f"seconds_{name}", seconds, "s") for name, seconds in deltas.items()),
        row("seconds_identical_whole", full["identical"], "s"),
    ]


def timed_fit(
    given: argparse.Namespace, folder: Path, stop: StopSignal, train: str, views: tuple[str, ...], rounds: int
) -> dict[str, list[float]]:
    """Seconds per step of a fit whose views take turns, and of the parts, in each round."""
    torch.manual_seed(0)
    teacher, student = (network(name, 224) for name in (given.teacher, "lite0"))
    device = torch.device(given.device)
    window = 10 if given.device == "cuda" else 1  # as in training, the host runs ahead of the GPU
    parts = bare_parts(teacher, student, given.batch, device)
    module = distillation(teacher, student, train, given.device)
    specs = module.step.teacher.inputs, module.step.student.input
    augments = {name: DualAugment(VIEWS[name], *specs, seed=0) for name in views}
    clock = device_clock(device)
    bare: list[float] = []

    def before(side: str) -> None:
        module.step.augment = augments[side]
        if side == views[0]:
            begun = clock()
            for _ in range(window):
                parts()
            bare.append((clock() - begun) / window)

    canvas = torch.randint(0, 256, (given.batch, 3, 256, 256), dtype=torch.uint8)
    batch = Batch(canvas, torch.arange(given.batch) % CLASSES, torch.arange(given.batch))
    turns = InMemory(batch, views, rounds, 1, window, before, clock)
    module.step.steps_per_epoch = len(turns)
    fit(module, turns, None, None, folder, "step", stop, None)  # type: ignore[arg-type]
    return {PARTS: bare[-rounds:], **turns.seconds}


class InMemory(Turns):
    """Turns as a loader whose batch is in memory."""

    @property
    def reader(self) -> InMemory:
        return self

    @property
    def unreadable(self) -> dict[str, str]:
        """No image is read, so none is unreadable."""
        return {}

    def prepare(self) -> str:
        """There is nothing to read."""
        return ""

    def read_wait_seconds(self) -> float:
        return 0.0

    def close(self) -> None:
        """There are no workers."""


def network(name: str, size: int) -> Network:
    return create_network(NetworkSettings(model=f"embedded:tf_efficientnet_{name}", size=size), CLASSES)


def bare_parts(teacher: Network, student: Network, batch: int, device: torch.device) -> Callable[[], None]:
    """A step of the plain timm models, on copies: the teacher's forward, the student's forward and backward."""
    frozen, trained = (
        copy.deepcopy(net.model).to(device, memory_format=torch.channels_last) for net in (teacher, student)
    )
    frozen.eval().requires_grad_(False)
    trained.train().requires_grad_(True)
    images = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % CLASSES

    def parts() -> None:
        with torch.no_grad():
            frozen(images)
        F.cross_entropy(trained(images), labels).backward()
        trained.zero_grad(set_to_none=True)

    return parts


def distillation(
    teacher: Network, student: Network, train: str, accelerator: str, sites: tuple[str, ...] = ("*",)
) -> Distillation:
    """The module of a run with CE + KD, as the stage ``TrainStudent`` creates it."""
    deltas = (LowRank.Settings(rank=8, sites=sites),) if train == "deltas" else ()
    settings = LearningSettings(train=train, deltas=deltas)  # type: ignore[arg-type]
    of_student, of_teacher = needs_of(OBJECTIVES)
    frozen, trained = Teacher([teacher], needs=of_teacher), Student(student, settings, of_student)
    terms = build_terms(OBJECTIVES, trained.shapes, frozen.shapes)
    # The rate is so small that random labels hardly change the weights.
    training = TrainingSettings(epochs=1, optimizer=OptimizerSettings(lr=1e-6), accelerator=accelerator)  # type: ignore[arg-type]
    views = DualAugment(VIEWS["identical"], frozen.inputs, trained.input, seed=0)
    return Distillation(DistillationStep(trained, frozen, terms, views, training, steps_per_epoch=1))


def device_clock(device: torch.device) -> Callable[[], float]:
    """Seconds, read once the device has finished its work."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    return clock


# --- Waiting for data ---------------------------------------------------------------------------------------------


def waiting(given: argparse.Namespace, folder: Path, stop: StopSignal) -> list[Row]:
    """the wait for data"""
    steps, every = (16, 4) if given.quick else (80, 8)
    teacher, student = (network(name, 160) for name in (given.teacher, "lite0"))
    if given.data:
        source = {"type": "huggingface", "data_files": {"train": str(given.data / "train*.parquet")}}
        source["cache_dir"] = str(folder / "cache")
    else:
        source = {"type": "folder", "root": str(generated(folder / "images", 32 * 40))}
    settings = {"source": source, "size": 160, "batch_size": 32, "workers": 2, "val_fraction": 0.0}
    loader = FirstBatches(ExperimentData(DataSettings.model_validate(settings)).train_loader(), steps)
    module = distillation(teacher, student, "deltas", given.device)
    module.step.augment = DualAugment(VIEWS["two_views"], module.step.teacher.inputs, module.step.student.input, seed=0)
    module.step.settings = module.step.settings.model_copy(update={"log_every": every})
    module.step.steps_per_epoch = len(loader)
    fit(module, loader, None, None, folder / "waiting", "waiting", stop, None)  # type: ignore[arg-type]
    with (folder / "waiting" / "log.csv").open() as file:
        fractions = [float(line["value"]) for line in csv.DictReader(file) if line["name"] == "share/data"]
    return [row("data_wait_share", fractions[1:], "share")]


class FirstBatches:
    """A training loader that ends its epoch early."""

    def __init__(self, loader: TrainLoader, batches: int):
        self.loader, self.batches = loader, min(batches, len(loader))
        self.reader, self.read_wait_seconds, self.close = loader.reader, loader.read_wait_seconds, loader.close
        self.unreadable = loader.unreadable

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        return itertools.islice(self.loader, self.batches)


def generated(root: Path, count: int) -> Path:
    """JPEG files of 160 × 200 pixels that are about as hard to decode as photographs: smooth shapes and some grain."""
    generator = np.random.default_rng(0)
    for number in range(count):
        file = root / f"class{number % CLASSES:02d}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        shapes = Image.fromarray(generator.integers(0, 256, (10, 8, 3), dtype=np.uint8))
        pixels = np.asarray(shapes.resize((160, 200), Image.Resampling.BICUBIC)) + generator.normal(0, 8, (200, 160, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return root


if __name__ == "__main__":
    main()
