"""What making views costs: the fused engine beside kornia, torchvision and albumentations, in one run.

    python benchmarks/augment.py [--quick] [--threads 1 2] [--device cuda] [--json FILE]

The strong chain: random resized crop (0.3 … 1 of the area), flip, jitter (0.4, 0.4, 0.4, 0.1; p 0.8), gray (0.2), blur
(σ 0.1 … 2 on a kernel of 3, 7 and 23 pixels at 32, 64 and 224; p 0.5), normalize, erase (0.25). From uint8 images an
eighth larger than the result to normalized float32. Sides take turns round by round; ratios are of the same round.

================================  ===================================================================================
row                               meaning
================================  ===================================================================================
images_per_second_SIDE_PX_Nt      of our fused chain, with its passes in C and ("torch") without a compiler, kornia's
                                  AugmentationSequential (eager; compiled with --compile), torchvision v2 and
                                  albumentations (sample by sample, as they are made to be used), at PX pixels with N
                                  threads
speedup_kornia_PX_Nt              ours over kornia eager; the row without _Nt is the one thread's
speedup_albumentations_224        ours over albumentations, each on one core: it works on bytes, we on floats; no loader
                                  and no workers on either side
host_syncs                        waits for the device in the strong chain, on the way that a GPU takes
kernels_PX, kernels_kornia_PX     kernels dispatched for one batch, on the CPU
kernels_compiled                  loops of the strong chain once torch.compile has been over it, draws included, and the
                                  operators it leaves; about what a GPU is given to do
calls_compiled                    the functions that torch.compile puts these loops into on a CPU, and the operators
bytes_over_floor_PX               bytes that torch's operators read and write for a chain, over uint8 in and float32 out
two_views_share_of_step           share of two views (weak teacher, strong student) in a step of resnet20 and resnet56
                                  at 32 px, batch 128: teacher forward, student forward and backward, SGD
================================  ===================================================================================

On a GPU, images per second at 224 × 256 beside kornia, and the share of what memory bandwidth allows.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import kornia
import kornia.augmentation as K
import numpy as np
import torch
from measure import Row, ratio, row, save
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from augment.chain import Chain
from augment.draws import Draws
from augment.dual import AugmentSettings, DualAugment
from augment.recipe import Op
from augment.views import InputSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {32: (128, 3), 64: (128, 7), 224: (32, 23)}
"""Pixels → (batch, kernel of the blur)."""
AT_LEAST = {"speedup_kornia_32": 5.0, "speedup_kornia_224": 5.0, "speedup_albumentations_224": 1.0}
AT_MOST = {"host_syncs": 0.0, "kernels_compiled": 25.0, "two_views_share_of_step": 0.015}
AT_LEAST |= {"gpu_speedup_kornia_224": 10.0, "gpu_share_of_floor_224": 0.3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds, no compilation: about a minute on two cores"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--compile", action="store_true", help="kornia compiled, too (minutes)")
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


# --- The sides -----------------------------------------------------------------------------------------------------


def strong(kernel: int) -> list[Op]:
    return [
        Op.of("RandomResizedCrop", scale=[0.3, 1.0]),
        Op.of("RandomHorizontalFlip"),
        Op.of("ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Op.of("RandomGrayscale", p=0.2),
        Op.of("RandomGaussianBlur", kernel_size=[kernel, kernel], sigma=[0.1, 2.0], p=0.5),
        Op.of("RandomErasing", p=0.25),
    ]


def source(batch: int, pixels: int, device: str = "cpu") -> Tensor:
    side = pixels + pixels // 8
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(batch, 3, 8, 8, generator=generator)
    images = F.interpolate(smooth, (side, side), mode="bicubic").add(0.1 * torch.rand(batch, 3, side, side)).clamp(0, 1)
    return images.mul(255).to(torch.uint8).to(device)


def fused_chain(images: Tensor, pixels: int, kernel: int, compile: bool | str = "auto") -> Callable[[], Tensor]:
    chain = Chain(strong(kernel), (pixels, pixels), compile=compile)  # type: ignore[arg-type]
    ids, spec = torch.arange(len(images)), InputSpec((pixels, pixels), MEAN, STD)
    calls = iter(range(10**9))
    return lambda: chain(images, Draws(0, next(calls), "student", ids), spec=spec)


def kornias(images: Tensor, pixels: int, kernel: int, compile: bool = False) -> Callable[[], Tensor]:
    size = (pixels, pixels)
    steps = [
        K.RandomResizedCrop(size, scale=(0.3, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
        K.Normalize(MEAN, STD),
        K.RandomErasing(p=0.25),
    ]
    # AugmentationSequential with a crop does not compile; a plain sequence of the same modules does.
    chain = torch.compile(nn.Sequential(*steps)) if compile else K.AugmentationSequential(*steps)
    return lambda: chain(images.float() / 255)


def torchvisions(images: Tensor, pixels: int, kernel: int) -> Callable[[], Tensor]:
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(pixels, scale=(0.3, 1.0), antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=0.25),
        ]
    )
    return lambda: torch.stack([chain(image) for image in images])


def albumentationss(images: Tensor, pixels: int, kernel: int) -> Callable[[], Tensor]:
    import os

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    chain = A.Compose(
        [
            A.RandomResizedCrop((pixels, pixels), scale=(0.3, 1.0)),
            A.HorizontalFlip(),
            A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5),
            A.Normalize(MEAN, STD),
            A.Erasing(scale=(0.02, 0.33), ratio=(0.3, 3.3), p=0.25),
        ]
    )
    pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]

    def run() -> Tensor:
        made = np.stack([chain(image=picture)["image"] for picture in pictures])
        return torch.from_numpy(made.transpose(0, 3, 1, 2))

    return run


# --- Images per second ---------------------------------------------------------------------------------------------


def throughput(threads: int, quick: bool, compile: bool) -> list[Row]:
    rows: list[Row] = []
    for pixels, (batch, kernel) in SIZES.items():
        images = source(batch, pixels)
        sides = {
            "ours": fused_chain(images, pixels, kernel),
            "torch": fused_chain(images, pixels, kernel, compile=False),
            "kornia": kornias(images, pixels, kernel),
            "torchvision": torchvisions(images, pixels, kernel),
            "albumentations": albumentationss(images, pixels, kernel),
        }
        if compile:
            sides["kornia_compiled"] = kornias(images, pixels, kernel, compile=True)
        seconds = turns(sides, 4 if quick else 15)
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


def turns(sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter) -> dict:
    """Side → seconds per call, by rounds in which each has one call; two rounds before are not counted."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 2):
        for side, run in sides.items():
            begun = clock()
            run()
            if number > 1:
                seconds[side].append(clock() - begun)
    return seconds


# --- Kernels, waits, bytes -----------------------------------------------------------------------------------------

_VIEWS = {"view", "_unsafe_view", "expand", "select", "slice", "split", "unbind", "permute", "transpose", "t", "alias"}
_VIEWS |= {
    "as_strided",
    "detach",
    "unsqueeze",
    "squeeze",
    "split_with_sizes",
    "lift_fresh",
    "_reshape_alias",
    "narrow",
    "detach_",
}
_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "unique_dim", "equal"}
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "resolve_conj", "to"}


class Kernels(TorchDispatchMode):
    """Counts the kernels of a piece of code, the waits for a device that it would need, and the bytes it moves."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.waits += name in _WAITS
        if name in _VIEWS | _EMPTY | {"_local_scalar_dense"}:
            return made
        self.kernels += 1
        tensors = [x for x in torch.utils._pytree.tree_leaves((args, kwargs, made)) if isinstance(x, Tensor)]
        self.bytes += sum(
            x.untyped_storage().nbytes() if x.numel() == 0 else x.numel() * x.element_size() for x in tensors
        )
        return made


def counts() -> list[Row]:
    """Kernels, waits and bytes of one batch."""
    rows: list[Row] = []
    waits = 0
    for pixels in (32, 224):
        batch, kernel = SIZES[pixels]
        images = source(batch, pixels)
        floor = images.numel() + batch * 3 * pixels * pixels * 4
        for side, run in (
            ("", fused_chain(images, pixels, kernel, compile=False)),
            ("_kornia", kornias(images, pixels, kernel)),
        ):
            run()
            with Kernels() as seen:
                run()
            rows.append(single(f"kernels{side}_{pixels}", seen.kernels, ""))
            rows.append(single(f"bytes_over_floor{side}_{pixels}", seen.bytes / floor, "×"))
            if side:
                rows.append(single(f"host_syncs{side}_{pixels}", seen.waits, ""))
        waits += waits_of_the_gpus_way(images, pixels, kernel)
    return [single("host_syncs", waits, ""), *rows]


def waits_of_the_gpus_way(images: Tensor, pixels: int, kernel: int) -> int:
    run = fused_chain(images, pixels, kernel)
    run()
    original = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        with Kernels() as seen:
            run()
    finally:
        torch.compiler.is_compiling = original
    return seen.waits


def compiled_kernels() -> list[Row]:
    """What torch.compile makes of the strong chain at 32 pixels, as for a GPU, but on the CPU."""
    from torch._inductor import metrics
    from torch._inductor.utils import run_and_get_code

    batch, kernel = SIZES[32]
    metrics.reset()
    with mock.patch("augment.fuse.run.backend_for", lambda device, wanted: "torch.compile"):
        run = fused_chain(source(batch, 32), 32, kernel)
        _, programs = run_and_get_code(run)
        generated = metrics.generated_kernel_count
        run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
    # What the compiler did not write itself shows up as operators of torch's.
    names = [event.name.removeprefix("aten::") for event in seen.events() if event.name.startswith("aten::")]
    left = sum(name not in _VIEWS | _EMPTY for name in names)
    functions = sum(program.count("= async_compile.cpp") for program in programs)
    return [single("kernels_compiled", generated + left, ""), single("calls_compiled", functions + left, "")]


def single(name: str, value: float, unit: str) -> Row:
    return row(name, [value], unit)


# --- A step --------------------------------------------------------------------------------------------------------


def share_of_step(rounds: int) -> Row:
    """Two views over the networks' part of a step at 32 pixels, batch 128."""
    torch.manual_seed(0)
    spec = InputSpec((32, 32), MEAN, STD)
    crop, flip, *colors = strong(3)
    pad = Op.of("RandomCrop", padding=4)
    views = DualAugment(
        AugmentSettings(policy="weak_teacher", teacher=[pad, flip], student=[crop, flip, *colors]),
        [spec],
        spec,
        seed=0,
    )
    images, ids = source(128, 32), torch.arange(128)
    teacher, student = resnet(9).eval(), resnet(3).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
    x, labels = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.arange(128) % 100

    def step() -> None:
        target = teacher(x)
        with torch.enable_grad():
            logits = student(x)
            loss = F.cross_entropy(logits, labels) + F.kl_div(logits.log_softmax(1), target.softmax(1))
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    calls = iter(range(10**9))
    seconds = turns({"views": lambda: views(images, ids, next(calls)), "step": step}, rounds)
    fractions = [v / (v + s) for v, s in zip(seconds["views"], seconds["step"])]
    return row("two_views_share_of_step", fractions, "of the step")


def resnet(blocks: int) -> nn.Module:
    """The CIFAR ResNet of 6·blocks + 2 layers (He et al. 2016, section 4.2): 3 for resnet20, 9 for resnet56."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for stage in (16, 32, 64):
        for block in range(blocks):
            layers.append(Block(width, stage, 2 if stage > 16 and block == 0 else 1))
            width = stage
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 100))
    return net.to(memory_format=torch.channels_last)


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(width, out, 3, stride, 1, bias=False),
            nn.Conv2d(out, out, 3, 1, 1, bias=False),
        )
        self.first_norm, self.second_norm = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more)))


# --- A GPU ---------------------------------------------------------------------------------------------------------


def on_gpu(rounds: int) -> list[Row]:
    """224 pixels, 256 images: beside kornia, and beside what the memory allows (measured by a copy)."""
    batch, pixels, kernel = 256, 224, 23
    images = source(batch, pixels, "cuda")

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    block = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(block)
    sides = {
        "ours": fused_chain(images, pixels, kernel),
        "kornia": kornias(images, pixels, kernel),
        "copy": lambda: target.copy_(block),
    }
    seconds = turns(sides, rounds, clock)
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
    rows.append(single("host_syncs", sum("synchronizing" in str(wait.message) for wait in waits), ""))
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
