"""The time that a step saves if teacher and student share a backbone and see the same view.

    python benchmarks/trunk.py [--quick] [--device cuda] [--json FILE]

Student: EfficientNet-Lite0 with low-rank deltas of rank 8 on the second half of its blocks (8 of 16, and the conv
behind them) and a new head. Teacher: Lite0 with the same weights. CE + KD, batch 16, fp32, channels_last, identical
views (crop and flip). The step is one iteration of a real fit, as in ``benchmarks/step.py``; its two sides take turns:
the trunk computed once, the default (``shared``), and by each network (``apart``).

====================  ===============================================================================================
row                   meaning
====================  ===============================================================================================
shared_trunk_step     a step with the trunk computed once over one with it computed twice
shared_trunk_layers   fraction of the student's convs and linear layers whose outputs it takes from the teacher
seconds_…             seconds of each side
====================  ===============================================================================================
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
from pathlib import Path

import torch
from measure import Row, ratio, row, save, show, step_options
from rich.console import Console
from step import CLASSES, InMemory, device_clock, distillation, network
from torch import nn

from distill.data.reader import Batch
from distill.models.shared_trunk import SharedTrunk
from distill.report.summary import Machine
from distill.training.fit import fit
from distill.training.signals import StopSignal

SIDES = ("shared", "apart")
BATCH = 16
LAYERS = (nn.Conv2d, nn.Linear)
SECOND_HALF = ("blocks.[456].*", "conv_head")


def main() -> None:
    given = step_options(__doc__).parse_args()
    size = given.size or (128 if given.quick else 224)
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop, console.status("measuring: the step"):
        rows = steps(given, size, Path(folder), stop)
    machine = Machine.here()
    show(console, f"shared trunk, lite0 → lite0, batch {BATCH}, {size} px, {given.device}", rows, {})
    device = machine.gpu if given.device == "cuda" else f"{machine.cpu}, {machine.threads} threads"
    console.print(f"{device} · Python {platform.python_version()} · torch {machine.torch} · seed 0", style="dim")
    if given.json:
        save(given.json, rows)


def steps(given: argparse.Namespace, size: int, folder: Path, stop: StopSignal) -> list[Row]:
    """Both sides, by turns."""
    torch.manual_seed(0)
    window = 10 if given.device == "cuda" else 1
    module = distillation(network("lite0", size), network("lite0", size), "deltas", given.device, SECOND_HALF)
    trunks: dict[str, SharedTrunk] = {}

    def before(side: str) -> None:
        if not trunks:  # the fit has determined by now what is shared
            trunks.update(shared=module.step.trunk, apart=SharedTrunk())
        module.step.trunk = trunks[side]

    canvas = torch.randint(0, 256, (BATCH, 3, size + 32, size + 32), dtype=torch.uint8)
    batch = Batch(canvas, torch.arange(BATCH) % CLASSES, torch.arange(BATCH))
    clock = device_clock(torch.device(given.device))
    turns = InMemory(batch, SIDES, 12 if given.quick else 40, 2, window, before, clock)
    module.step.steps_per_epoch = len(turns)
    fit(module, turns, None, None, folder, "step", stop, None)  # type: ignore[arg-type]
    student = module.step.student.model
    taken = {layer for part in trunks["shared"].taken(1) for layer in part.modules() if isinstance(layer, LAYERS)}
    every = [layer for layer in student.modules() if isinstance(layer, LAYERS)]
    return [
        ratio("shared_trunk_step", turns.seconds["shared"], turns.seconds["apart"]),
        row("shared_trunk_layers", [len(taken) / len(every)], "share"),
        *(row(f"seconds_{side}", seconds, "s") for side, seconds in turns.seconds.items()),
    ]


if __name__ == "__main__":
    main()
