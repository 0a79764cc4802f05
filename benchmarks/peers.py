"""Our training step of knowledge distillation against those of timm's task and of torchdistill.

    pip install -e '.[bench]'
    python benchmarks/peers.py [--quick] [--device cuda] [--json FILE]

Teacher: EfficientNet-Lite1, student: Lite0, every weight of it trained, 61 classes, batch 16, 128 px, fp32; CE and KD
at temperature 4; AdamW without clipping. Copies of the same two networks, by turns in one process.

**Ours** is one iteration of a real fit (``distill.training.fit``, as in ``benchmarks/step.py``): crop, flip and
normalization of uint8 images on the device, identical for both networks, teacher, student, loss, backward, guard,
update, schedule, callbacks, log. **The peers** get one ready-made normalized tensor, which favors them, and run a step
as in their documentation: ``timm.task.LogitDistillationTask``, backward, ``torch.optim.AdamW``; torchdistill's
``DistillationBox`` with ``KDLoss``, ``forward_process`` and ``post_forward_process``. They run by default in torch's
own memory format, and once more in channels_last, which ours always uses.

====================================  ==================================================================================
row                                   meaning
====================================  ==================================================================================
step_vs_timm_task                     our step over timm's by default
step_vs_torchdistill                  our step over torchdistill's by default
step_vs_timm_task_channels_last       the same with the peer's networks and images in channels_last
step_vs_torchdistill_channels_last
seconds_…                             seconds of each side
====================================  ==================================================================================
"""

from __future__ import annotations

import argparse
import copy
import logging
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from measure import Row, ratio, row, save, show
from rich.console import Console
from step import CLASSES, VIEWS, InMemory, device_clock, distillation, network
from torch import Tensor, nn

from augment.dual import DualAugment
from distill.data.reader import Batch
from distill.models.network import Network
from distill.report.summary import Machine
from distill.training.fit import fit
from distill.training.signals import StopSignal

SIZE, BATCH, TEMPERATURE, RATE = 128, 16, 4.0, 1e-6
TARGETS = {"step_vs_timm_task": 0.9, "step_vs_torchdistill": 0.9}
OURS = "ours"
Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: about a minute on two cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop, console.status("measuring the steps"):
        seconds = by_turns(torch.device(given.device), 3 if given.quick else 16, Path(folder), stop)
    rows: list[Row] = [ratio(f"step_vs_{peer}", seconds[OURS], seconds[peer]) for peer in PEERS]
    rows += [row(f"seconds_{name}", values, "s") for name, values in seconds.items()]
    machine = Machine.here()
    show(console, f"KD step, lite1 → lite0, batch {BATCH}, {SIZE} px, {given.device}", rows, TARGETS)
    device = machine.gpu if given.device == "cuda" else f"{machine.cpu}, {machine.threads} threads"
    versions = f"torch {machine.torch}, timm {machine.timm}, torchdistill {version('torchdistill')}"
    console.print(f"{device} · Python {platform.python_version()} · {versions} · seed 0", style="dim", highlight=False)
    if given.json:
        save(given.json, rows)


def by_turns(device: torch.device, rounds: int, folder: Path, stop: StopSignal) -> dict[str, list[float]]:
    """Seconds per step of every side, round by round."""
    torch.manual_seed(0)
    teacher, student = network("lite1", SIZE), network("lite0", SIZE)
    window = 10 if device.type == "cuda" else 1
    peers = {name: make(teacher, student, device) for name, make in PEERS.items()}
    module = distillation(teacher, student, "full", device.type)
    module.step.settings = module.step.settings.model_copy(update={"clip_norm": None})
    module.step.augment = DualAugment(VIEWS["identical"], module.step.teacher.inputs, module.step.student.input, seed=0)
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    clock = device_clock(device)

    def before(side: str) -> None:
        for name, step in peers.items():
            begun = clock()
            for _ in range(window):
                step()
            seconds[name].append((clock() - begun) / window)

    canvas = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    batch = Batch(canvas, torch.arange(BATCH) % CLASSES, torch.arange(BATCH))
    turns = InMemory(batch, (OURS,), rounds, 1, window, before, clock)
    module.step.steps_per_epoch = len(turns)
    fit(module, turns, None, None, folder, "step", stop, None)  # type: ignore[arg-type]
    return {**turns.seconds, **{name: values[-rounds:] for name, values in seconds.items()}}


def timm_task(teacher: Network, student: Network, device: torch.device, form: torch.memory_format) -> Step:
    from timm.task import LogitDistillationTask

    frozen, trained, images, labels = sides(teacher, student, device, form)
    task = LogitDistillationTask(
        trained,
        frozen,
        criterion=nn.CrossEntropyLoss(),
        distill_loss_weight=1.0,
        task_loss_weight=1.0,
        temperature=TEMPERATURE,
        device=device,
        verbose=False,
    ).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=RATE)

    def step() -> None:
        task(images, labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def torchdistill(teacher: Network, student: Network, device: torch.device, form: torch.memory_format) -> Step:
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    frozen, trained, images, labels = sides(teacher, student, device, form)
    paths = {f"{side}_module_{key}": value for side in ("student", "teacher") for key, value in OUTPUT.items()}
    loss = {"key": "KDLoss", "kwargs": {**paths, "temperature": TEMPERATURE, "alpha": 1.0, "beta": 1.0}}
    config: dict[str, Any] = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": RATE}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }
    box = get_distillation_box(frozen, trained, {}, config, device, None, False, 1)
    box.teacher_model.eval()
    box.student_model.train()

    def step() -> None:
        box.post_forward_process(box.forward_process(images, labels))

    return step


OUTPUT = {"path": ".", "io": "output"}


def sides(
    teacher: Network, student: Network, device: torch.device, form: torch.memory_format
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """Copies of the two networks, and images and labels that are ready for them."""
    frozen, trained = (copy.deepcopy(net.model).to(device, memory_format=form) for net in (teacher, student))
    images = torch.randn(BATCH, 3, SIZE, SIZE, device=device).contiguous(memory_format=form)
    return frozen.eval().requires_grad_(False), trained.train(), images, torch.arange(BATCH, device=device) % CLASSES


def in_form(make: Callable[..., Step], form: torch.memory_format) -> Callable[..., Step]:
    return lambda teacher, student, device: make(teacher, student, device, form)


PEERS = {
    name + suffix: in_form(make, form)
    for suffix, form in (("", torch.contiguous_format), ("_channels_last", torch.channels_last))
    for name, make in (("timm_task", timm_task), ("torchdistill", torchdistill))
}


if __name__ == "__main__":
    main()
