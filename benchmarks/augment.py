"""The cost of making views: the fused engine beside kornia, torchvision and albumentations, in one run.

    python benchmarks/augment.py [--quick] [--threads 1 2] [--device cuda] [--json FILE]

The strong chain: random resized crop (0.3 … 1 of the area), flip, jitter (0.4, 0.4, 0.4, 0.1; p 0.8), gray (0.2), blur
(σ 0.1 … 2 on a kernel of 3, 7 and 23 pixels at 32, 64 and 224; p 0.5), normalize, erase (0.25). From uint8 images an
eighth larger than the result to normalized float32. Sides take turns in every round; ratios are of the same round. The
chains are in ``augment_sides.py``, the counts in ``augment_counts.py``, the step in ``augment_step.py``.

================================  ===================================================================================
row                               meaning
================================  ===================================================================================
images_per_second_SIDE_PX_Nt      of our fused chain, with its passes in C and ("torch") without a compiler, kornia's
                                  AugmentationSequential (eager; compiled with --compile), torchvision v2 and
                                  albumentations (sample by sample, as they are meant to be used), at PX pixels with N
                                  threads
speedup_kornia_PX_Nt              ours over kornia eager; the row without _Nt is with one thread
speedup_albumentations_224        ours over albumentations, each on one core: it computes on bytes, we on floats; no
                                  loader and no workers on either side
host_syncs                        synchronizations with the device in the strong chain, on a GPU's path
kernels_PX, kernels_kornia_PX     kernels dispatched for one batch, on the CPU
kernels_compiled                  loops of the strong chain compiled by torch.compile, draws included, and operators
                                  left over; about as many kernels as a GPU would launch
calls_compiled                    the functions that hold these loops on a CPU, and the operators left over
bytes_over_floor_PX               bytes that torch's operators read and write for a chain, over uint8 in and float32 out
two_views_share_of_step           share of two views (weak teacher, strong student) in a step of resnet20 and resnet56
                                  at 32 px, batch 128: teacher forward, student forward and backward, SGD
================================  ===================================================================================

On a GPU, images per second with 256 images of 224 pixels beside kornia, and the fraction of the rate that the memory
bandwidth allows.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
import warnings
from pathlib import Path

import kornia
import torch
from augment_counts import compiled_kernels, counts
from augment_sides import (
    SIZES,
    albumentations_chain,
    fused_chain,
    kornia_chain,
    source,
    torchvision_chain,
)
from augment_step import share_of_step
from measure import Row, exact, ratio, row, save, seconds_by_turns
from rich import box
from rich.console import Console
from rich.table import Table

AT_LEAST = {
    "speedup_kornia_32": 5.0,
    "speedup_kornia_224": 5.0,
    "speedup_albumentations_224": 1.0,
    "gpu_speedup_kornia_224": 10.0,
    "gpu_share_of_floor_224": 0.3,
}
AT_MOST = {"host_syncs": 0.0, "kernels_compiled": 25.0, "two_views_share_of_step": 0.015}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, no compilation: about a minute on two cores"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--compile", action="store_true", help="also kornia compiled (takes minutes)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    console = Console(width=120)
    rows: list[Row] = []
    with console.status("measuring"), torch.no_grad():
        if given.device == "cuda":
            rows += on_gpu(20 if given.quick else 60)
        else:
            for threads in sorted(set(given.threads)):
                torch.set_num_threads(threads)
                rows += throughput(threads, given.quick, given.compile)
            torch.set_num_threads(1)
            rows += counts()
            rows += [] if given.quick else compiled_kernels()
            rows += [share_of_step(3 if given.quick else 12)]
    table(console, rows)
    versions = f"torch {torch.__version__}, kornia {kornia.__version__}, Python {platform.python_version()}"
    device = torch.cuda.get_device_name() if given.device == "cuda" else _processor()
    console.print(f"{device} · {versions} · seed 0", style="dim", highlight=False)
    if given.json:
        save(given.json, rows)


def throughput(threads: int, quick: bool, compile: bool) -> list[Row]:
    rows: list[Row] = []
    for pixels, (batch, kernel) in SIZES.items():
        images = source(batch, pixels)
        sides = {
            "ours": fused_chain(images, pixels, kernel),
            "torch": fused_chain(images, pixels, kernel, compile=False),
            "kornia": kornia_chain(images, pixels, kernel),
            "torchvision": torchvision_chain(images, pixels, kernel),
            "albumentations": albumentations_chain(images, pixels, kernel),
        }
        if compile:
            sides["kornia_compiled"] = kornia_chain(images, pixels, kernel, compile=True)
        seconds = seconds_by_turns(sides, 4 if quick else 15)
        tail = f"{pixels}_{threads}t"
        rows += [
            row(f"images_per_second_{side}_{tail}", [batch / s for s in of], "1/s") for side, of in seconds.items()
        ]
        for side, of in seconds.items():
            if side != "ours":
                rows.append(ratio(f"speedup_{side}_{tail}", of, seconds["ours"]))
                if threads == 1:
                    rows.append(ratio(f"speedup_{side}_{pixels}", of, seconds["ours"]))
    return rows


def on_gpu(rounds: int) -> list[Row]:
    """256 images of 224 pixels: beside kornia, and beside the limit of the memory (measured by a copy)."""
    batch, pixels, kernel = 256, 224, 23
    images = source(batch, pixels, "cuda")

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(block)
    sides = {
        "ours": fused_chain(images, pixels, kernel),
        "kornia": kornia_chain(images, pixels, kernel),
        "copy": lambda: target.copy_(block),
    }
    seconds = seconds_by_turns(sides, rounds, clock)
    moved = images.numel() + batch * 3 * pixels * pixels * 4
    floors = [copy * moved / (2 * 2**30) for copy in seconds["copy"]]
    rows = [
        row(f"gpu_images_per_second_{side}_224", [batch / s for s in seconds[side]], "1/s")
        for side in ("ours", "kornia")
    ]
    rows.append(ratio("gpu_speedup_kornia_224", seconds["kornia"], seconds["ours"]))
    rows.append(ratio("gpu_share_of_floor_224", floors, seconds["ours"]))
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        sides["ours"]()
    torch.cuda.set_sync_debug_mode("default")
    rows.append(exact("host_syncs", sum("synchronizing" in str(wait.message) for wait in waits), ""))
    return rows


def table(console: Console, rows: list[Row]) -> None:
    shown = Table(title="augmentation", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    shown.add_column("figure", no_wrap=True)
    for heading in ("median", "quartiles", "unit", "target"):
        shown.add_column(heading, justify="left" if heading == "unit" else "right", no_wrap=True)
    for image in rows:
        least, most = AT_LEAST.get(image.name, -math.inf), AT_MOST.get(image.name, math.inf)
        limit = f"≥ {least:g}" if image.name in AT_LEAST else f"≤ {most:g}" if image.name in AT_MOST else ""
        color = "green" if least <= image.value <= most else "red"
        spread = f"{image.low:.3g} … {image.high:.3g}"
        shown.add_row(image.name, f"{image.value:.4g}", spread, image.unit, f"[{color}]{limit}[/]" if limit else "")
    console.print(shown)


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


if __name__ == "__main__":
    main()
