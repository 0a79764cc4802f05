"""The cost of training a delta: a step and its memory, against peft's LoRA, full fine-tuning and a lower bound.

    pip install "delta-distill[bench]"
    python benchmarks/deltas.py [--quick] [--only resnet50,vits,methods,ladder,serving] [--device cuda] [--json FILE]

A **step** is forward, cross-entropy, backward and a fused AdamW update of what is trained, on a batch in memory; fp32,
random weights, channels_last for ResNet-50. Normalization keeps its running statistics on every side, full fine-tuning
included. Sides take turns in one process; ratios are of the same round, shown are medians and quartiles.

**Memory** is the peak of what a step allocates beyond what is allocated between steps (weights, optimizer state): saved
activations, gradients and temporaries. On a GPU the allocator counts it; on a CPU it is the running sum over the
allocations and frees that ``torch.profiler`` records in one step, which is deterministic. Scratch space that a library
takes from the system itself (oneDNN) is not counted.

Not in a step: a delta's own ``penalty`` (those of ``sparse_mask`` and ``halrp`` have one by default). Without peft its
rows are left out.

``--quick`` checks that everything runs; its figures mean little. With 2 images of 128 px a step has a twelfth of the
work on activations that 8 of 224 px have, and the same work on weights (the changed weight, its gradient, the
optimizer), so methods with many parameters look slower, and ratios to low rank and to the floor are higher; three
rounds do not show the spread.

===============================  ====================================================================================
row                              meaning
===============================  ====================================================================================
resnet50_step_vs_peft, _memory_  low rank on all convs, rank 8, over peft's LoRA on the same layers with the same rank;
                                 the head is trained on both sides
resnet50_step_vs_full, _memory_  the same over full fine-tuning
resnet50_step_vs_floor           the same over forward and gradient of the input through frozen weights, a lower bound
                                 for every method that trains the first layer
vits_…                           the same on ViT-S/16, all Linears
step_<method>_vs_low_rank        every mergeable delta, with its default settings, over low rank, on ResNet-50
worst_weight_delta_vs_low_rank   the largest of them
ladder_memory_vs_full            the ladder side network over full fine-tuning, ResNet-50
ladder_step_vs_frozen_forward    a step of it over a forward pass without gradient
merged_latency_vs_backbone       forward of the merged ResNet-50 over the plain one
===============================  ====================================================================================
"""

from __future__ import annotations

import argparse
import gc
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from delta_steps import RANK, Bench, Step, floor, full, peak_bytes, trained, with_peft
from measure import Row, exact, ratio, row, save, show
from rich.console import Console
from torch import nn

from augment.base import Registry
from distill.deltas.attach import merge
from distill.deltas.base import DeltaError, DeltaSettings, WeightDelta
from distill.deltas.low_rank import LowRank
from distill.report.summary import Machine

TARGETS = {
    "resnet50_step_vs_peft": 1.0,
    "resnet50_memory_vs_peft": 1.0,
    "resnet50_step_vs_full": 0.85,
    "vits_step_vs_peft": 1.0,
    "vits_memory_vs_peft": 1.0,
    "worst_weight_delta_vs_low_rank": 1.3,
    "ladder_memory_vs_full": 0.31,
    "ladder_step_vs_frozen_forward": 1.6,
    "merged_latency_vs_backbone": 1.05,
}
MODELS = {"resnet50": "resnet50", "vits": "vit_small_patch16_224"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, few rounds: a check, not a measurement")
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--batch", type=int, help="default 8, quick 2, on a GPU 64")
    parser.add_argument("--size", type=int, help="pixels; default 224, quick 128")
    parser.add_argument("--rounds", type=int, help="default 10, quick 3")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    on_gpu = given.device == "cuda"
    bench = Bench(
        device=torch.device(given.device),
        rounds=given.rounds or (3 if given.quick else 10),
        window=10 if on_gpu else 1,  # as in training, the host runs ahead of the GPU
        batch=given.batch or (64 if on_gpu else 2 if given.quick else 8),
        size=given.size or (128 if given.quick and not on_gpu else 224),
        console=Console(),
    )
    rows: list[Row] = []
    for name in given.only.split(","):
        if name not in PARTS:
            parser.error(f"--only: no part {name!r}; there are {', '.join(PARTS)}")
        with bench.console.status(f"measuring {name}"):
            rows += PARTS[name](bench)
        gc.collect()
    machine = Machine.here()
    show(bench.console, f"deltas, batch {bench.batch}, {bench.size} px, {given.device}", rows, TARGETS)
    device = machine.gpu if on_gpu else f"{machine.cpu}, {machine.threads} threads"
    peft = f"peft {version('peft')}" if find_spec("peft") else "without peft"
    versions = f"torch {machine.torch}, timm {machine.timm}, {peft}"
    bench.console.print(f"{device} · Python {platform.python_version()} · {versions} · seed 0", style="dim")
    if given.json:
        save(given.json, rows)


# --- Against peft and full fine-tuning ----------------------------------------------------------------------------


def against(bench: Bench, name: str) -> list[Row]:
    """Low rank over peft's LoRA, full fine-tuning and the floor."""
    architecture = MODELS[name]
    kind = "conv" if name == "resnet50" else "linear"
    student = bench.student(architecture, LowRank.Settings(rank=RANK, kinds=kind))
    plain = bench.network(architecture)
    sides = {"ours": trained(bench, student), "full": full(bench, architecture), "floor": floor(bench, architecture)}
    if find_spec("peft"):
        sides["peft"] = bench.step(*with_peft(plain, [site.name for site in student.sites]))
    else:
        bench.console.print(f"{name}: peft is not installed, its rows are left out", style="yellow")
    seconds = bench.by_turns(sides)
    peaks = {side: peak_bytes(bench, step) for side, step in sides.items()}
    rows = []
    if "peft" in sides:
        rows = [
            ratio(f"{name}_step_vs_peft", seconds["ours"], seconds["peft"]),
            exact(f"{name}_memory_vs_peft", peaks["ours"] / peaks["peft"], "×"),
            ratio(f"{name}_peft_step_vs_floor", seconds["peft"], seconds["floor"]),
        ]
    return [
        *rows,
        ratio(f"{name}_step_vs_full", seconds["ours"], seconds["full"]),
        exact(f"{name}_memory_vs_full", peaks["ours"] / peaks["full"], "×"),
        ratio(f"{name}_step_vs_floor", seconds["ours"], seconds["floor"]),
        *(row(f"{name}_{side}_seconds", values, "s") for side, values in seconds.items()),
        *(exact(f"{name}_{side}_megabytes", peak / 1e6, "MB") for side, peak in peaks.items()),
    ]


# --- Methods ------------------------------------------------------------------------------------------------------


def methods(bench: Bench) -> list[Row]:
    """Every weight delta over low rank, measured by turns with a low-rank student."""
    rows = []
    reference = trained(bench, bench.student("resnet50", LowRank.Settings(rank=RANK)))
    for name, settings in weight_deltas():
        try:
            student = bench.student("resnet50", settings)
        except DeltaError as error:
            bench.console.print(f"{name} is not measured: {error}", style="yellow", highlight=False)
            continue
        seconds = bench.by_turns({"low_rank": reference, name: trained(bench, student)})
        rows.append(ratio(f"step_{name}_vs_low_rank", seconds[name], seconds["low_rank"]))
        del student
        gc.collect()
    worst = max(rows, key=lambda entry: entry.value)
    return [Row("worst_weight_delta_vs_low_rank", worst.value, "×", worst.low, worst.high), *rows]


def weight_deltas() -> Iterator[tuple[str, DeltaSettings]]:
    for name, settings in Registry("distill.deltas", "Delta").known().items():
        if settings.component is not None and issubclass(settings.component, WeightDelta) and name != "low_rank":
            yield name, settings()  # type: ignore[misc, call-arg]


# --- Ladder -------------------------------------------------------------------------------------------------------


def ladder(bench: Bench) -> list[Row]:
    """The side network over full fine-tuning, and over the forward pass that it needs in any case."""
    known = Registry("distill.deltas", "Delta").known()
    student = bench.student("resnet50", known["ladder"]())  # type: ignore[arg-type, call-arg]
    frozen = bench.network("resnet50").eval().requires_grad_(False).to(memory_format=torch.channels_last)
    images = bench.images()

    def forward() -> None:
        with torch.no_grad():
            frozen(images)

    sides = {"ladder": trained(bench, student), "forward": forward, "full": full(bench, "resnet50")}
    seconds = bench.by_turns(sides)
    peaks = {side: peak_bytes(bench, sides[side]) for side in ("ladder", "full")}
    return [
        exact("ladder_memory_vs_full", peaks["ladder"] / peaks["full"], "×"),
        ratio("ladder_step_vs_frozen_forward", seconds["ladder"], seconds["forward"]),
        ratio("ladder_step_vs_full", seconds["ladder"], seconds["full"]),
    ]


# --- Serving ------------------------------------------------------------------------------------------------------


def serving(bench: Bench) -> list[Row]:
    """Latency of the merged model; that of many tasks at once is in ``serving.py``."""
    student = bench.student("resnet50", LowRank.Settings(rank=RANK, kinds="conv"))
    plain = bench.network("resnet50").eval()
    images = bench.images()
    merge(student.model)
    fused = student.model.eval().requires_grad_(False)
    bare = plain.requires_grad_(False).to(memory_format=torch.channels_last)

    def run(model: nn.Module) -> Step:
        def forward() -> None:
            with torch.no_grad():
                model(images)

        return forward

    seconds = bench.by_turns({"merged": run(fused), "backbone": run(bare)})
    return [ratio("merged_latency_vs_backbone", seconds["merged"], seconds["backbone"])]


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "resnet50": lambda bench: against(bench, "resnet50"),
    "vits": lambda bench: against(bench, "vits"),
    "methods": methods,
    "ladder": ladder,
    "serving": serving,
}


if __name__ == "__main__":
    main()
