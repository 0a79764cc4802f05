"""The time of a step with the teacher's outputs from the cache, and the change in KD by a cache in float16.

    python benchmarks/cache.py [--quick] [--size 224] [--device cuda] [--json FILE]

Teacher: EfficientNet-Lite1, student: Lite0 with ImageNet weights and low-rank deltas of rank 8 on every layer, 61
classes, batch 16, fp32, channels_last. A step is a training step without Lightning: the student's view by the default
chain, forward, objectives, backward, fused AdamW. The batch is in memory; ids run through an epoch of 2,048 samples, so
rows are read from the whole file. Three sides take turns, in one process and one run:

- student: no teacher at all, cross-entropy;
- cached: cross-entropy + KD, the teacher's logits (all, float16) from a complete cache;
- live: cross-entropy + KD, the teacher's forward on its own view of the batch (policy weak_teacher).

======================  =============================================================================================
row                     meaning
======================  =============================================================================================
cache_step_vs_live      cached over student: the cost of the cache over a step without a teacher
cached_over_live        cached over live: the saving by the cache
kd_change_float16_t4    |KD with the cached logits − KD| / KD at T 4, one number for each of 16 batches of generated
                        images, both networks with their 1,000 ImageNet classes: all logits in float16
kd_change_top…_t1, _t4  the same with the largest 10, 50 and 200 of 1,000 logits, T 1 and T 4: the remaining mass is
                        spread evenly. It is smaller for images that the teacher is confident about
bytes_…                 of a row with 1,000 classes: all logits, and the largest 10, both float16
seconds_…               seconds of each side
======================  =============================================================================================
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measure import Row, ratio, row, save, show, step_options
from PIL import Image
from rich.console import Console
from step import CLASSES, OBJECTIVES, device_clock, generated, network

from augment.chain import eval_view
from augment.draws import sample_key
from augment.dual import AugmentSettings, DualAugment
from distill.data.reader import Batch
from distill.deltas.low_rank import LowRank
from distill.models.features import Features, FeatureShapes
from distill.models.network import NetworkSettings, create_network
from distill.models.settings import LearningSettings
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.models.teacher_settings import CacheSettings
from distill.objectives.base import Targets
from distill.objectives.kd import KD
from distill.report.summary import Machine
from distill.training.cache_rows import RowLayout
from distill.training.module import Distillation
from distill.training.settings import TrainingSettings
from distill.training.step import DistillationStep
from distill.training.teacher_cache import TeacherCache
from distill.training.terms import build_terms, needs_of

TARGETS = {"cache_step_vs_live": 1.05}
SIDES = ("student", "cached", "live")
SAMPLES, BATCH = 2048, 16
IDS = [f"sample {number}" for number in range(SAMPLES)]


def main() -> None:
    given = step_options(__doc__).parse_args()
    size = given.size or (128 if given.quick else 224)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        with console.status("measuring: the step"):
            rows = steps(given, size, Path(folder))
        with console.status("measuring: the change in KD"):
            rows += changes(size, Path(folder), 4 if given.quick else 16)
    machine = Machine.here()
    show(console, f"cache, lite1 → lite0, batch {BATCH}, {size} px, {given.device}", rows, TARGETS)
    device = machine.gpu if given.device == "cuda" else f"{machine.cpu}, {machine.threads} threads"
    console.print(f"{device} · Python {platform.python_version()} · torch {machine.torch} · seed 0", style="dim")
    if given.json:
        save(given.json, rows)


def steps(given: argparse.Namespace, size: int, folder: Path) -> list[Row]:
    """The three sides, by turns."""
    device, rounds = torch.device(given.device), 12 if given.quick else 40
    window = 10 if given.device == "cuda" else 1
    made = {side: stepping(side, size, device, folder) for side in SIDES}
    keys = torch.tensor([sample_key(id) for id in IDS]).view(-1, BATCH)
    ids = itertools.cycle(keys[torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))])
    canvas = torch.randint(0, 256, (BATCH, 3, size + 32, size + 32), dtype=torch.uint8).to(device)
    labels = (torch.arange(BATCH) % CLASSES).to(device)
    clock, seconds = device_clock(device), {side: [] for side in SIDES}
    for number in range(rounds + 2):
        for side in SIDES:
            batches = [Batch(canvas, labels, next(ids)) for _ in range(window)]
            begun = clock()
            for batch in batches:
                made[side](batch)
            if number >= 2:
                seconds[side].append((clock() - begun) / window)
    student, cached, live = (seconds[side] for side in SIDES)
    return [
        ratio("cache_step_vs_live", cached, student),
        ratio("cached_over_live", cached, live),
        *(row(f"seconds_{side}", seconds[side], "s") for side in SIDES),
    ]


def stepping(side: str, size: int, device: torch.device, folder: Path) -> Callable[[Batch], None]:
    """One training step of a side."""
    torch.manual_seed(0)
    objectives = OBJECTIVES[:1] if side == "student" else OBJECTIVES
    of_student, of_teacher = needs_of(objectives)
    student = Student(network("lite0", size), LearningSettings(deltas=(LowRank.Settings(rank=8),)), of_student)
    teacher = None if side == "student" else Teacher([network("lite1", size)], needs=of_teacher)
    terms = build_terms(objectives, student.shapes, teacher.shapes if teacher else [])
    dual = DualAugment(AugmentSettings(), teacher.inputs if teacher else (), student.input, seed=0)
    cache = filled(folder, teacher.shapes) if teacher is not None and side == "cached" else None
    training = TrainingSettings(epochs=1)
    module = Distillation(DistillationStep(student, teacher, terms, dual, training, 1, cache=cache)).to(device)
    optimizer = module.configure_optimizers()["optimizer"]
    module.train()

    def step(batch: Batch) -> None:
        loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def filled(folder: Path, shapes: list[FeatureShapes]) -> TeacherCache:
    """A cache with every row of an epoch; its values do not change the time of a step."""
    cache = TeacherCache(folder, {"seed": 0}, RowLayout(shapes, 1, CacheSettings()), IDS, epochs=1)
    for start in range(0, SAMPLES, 256):
        ids = torch.tensor([sample_key(id) for id in IDS[start : start + 256]])
        cache.keep(cache.find(ids, 0), [[Features(logits=torch.randn(len(ids), CLASSES))]])
    return cache


@torch.inference_mode()
def changes(size: int, folder: Path, batches: int) -> list[Row]:
    """KD with the cached form of real logits against KD with all logits."""
    pictures = sorted(generated(folder / "images", 16 * batches).rglob("*.jpg"))
    networks = {
        name: create_network(NetworkSettings(model=f"embedded:tf_efficientnet_{name}", size=size))
        for name in ("lite0", "lite1")
    }
    kept = {"float16": CacheSettings(), **{f"top{k}": CacheSettings(logits=k) for k in (10, 50, 200)}}
    layouts = {name: RowLayout([FeatureShapes(1000, 1280)], 1, settings) for name, settings in kept.items()}
    shapes = FeatureShapes(1000, 1280)
    losses = {f"t{t}": KD(KD.Settings(temperature=t), shapes, shapes) for t in (1, 4)}
    changes: dict[str, list[float]] = {f"{name}_{at}": [] for at in losses for name in kept}
    for start in range(0, len(pictures), 16):
        images = np.stack([np.asarray(Image.open(path).resize((size, size))) for path in pictures[start : start + 16]])
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        student, teacher = (Features(logits=net.model(eval_view(batch, net.input))) for net in networks.values())
        labels = Targets(torch.zeros(len(batch), dtype=torch.int64))
        for name, layout in layouts.items():
            [[again]] = layout.decode(layout.encode([[teacher]]))
            for at, kd in losses.items():
                exact = kd(student, teacher, labels)
                changes[f"{name}_{at}"].append(float((kd(student, again, labels) - exact).abs() / exact))
    bytes_of = {"bytes_full": layouts["float16"], "bytes_top10": layouts["top10"]}
    return [
        *(row(f"kd_change_{name}", values, "share") for name, values in changes.items()),
        *(row(name, [float(layout.dtype.itemsize)], "B") for name, layout in bytes_of.items()),
    ]


if __name__ == "__main__":
    main()
