"""The cost of each objective: its time as a fraction of a ResNet-18 step, its memory, and CRD's memory traffic.

    python benchmarks/objectives.py [--quick] [--device cuda] [--json FILE]

Every objective of the package, with its default settings, forward and backward, on random outputs of a student and a
teacher: batch 256, 1,000 classes, both pooled features 2,048 wide, maps as those of a ResNet-18 and a ResNet-50. A bank
holds 50,000 samples. The bare step is the student's part of any training: forward, cross-entropy and backward of timm's
ResNet-18 in train mode, fp32, channels_last; no optimizer, no teacher, no views.

On a GPU images are 224 px and a step is one batch. On a CPU a whole batch of such maps and images takes gigabytes and
minutes, so objectives that read maps are measured with the maps of 64 px and compared with the step at 64 px (both grow
with the pixels); the others with the step at 224 px. A step is measured on 8 images at 224 px or 64 at 64 px, and
scaled to 256.

======================  =============================================================================================
row                     meaning
======================  =============================================================================================
worst_objective_share   the largest share of all but CRD
share_…                 time of an objective over the bare step, by turns
seconds_…               seconds of each, and of the two bare steps
memory_…                peak of the bytes allocated during forward and backward, beyond the outputs
crd_bytes_vs_reference  bytes that CRD reads and writes in a step of batch 64, 16,384 negatives, over the 1.0 GB that
                        the usual code gathers from its banks (2 × 64 × 16,385 rows of 128 floats, written once)
crd_bytes               those bytes, in a step after the first: every operation's inputs and outputs, for a lookup only
                        the rows that it reads
crd_bytes_plain         the same count for the usual implementation, repeated here: rows of both banks for every sample
======================  =============================================================================================
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Row, ratio, row, save, show
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from augment.base import Registry
from distill.models.features import Features, FeatureShapes
from distill.objectives.base import Objective, Targets
from distill.objectives.crd import CRD
from distill.report.summary import Machine

BATCH, CLASSES, WIDTH, SAMPLES = 256, 1000, 2048, 50_000
STUDENT_MAPS, TEACHER_MAPS = (64, 128, 256, 512), (256, 512, 1024, 2048)
TARGETS = {"worst_objective_share": 0.05, "crd_bytes_vs_reference": 0.25}
REFERENCE_BYTES = 1.0e9
KNOWN = Registry("distill.objectives", "Objective").known()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a minute or two on two cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    console = Console()
    with console.status("measuring the objectives"):
        rows = step_fractions(torch.device(given.device), 2 if given.quick else 8)
    with console.status("counting CRD's bytes"):
        rows += crd_rows()
    machine = Machine.here()
    show(console, f"objectives, batch {BATCH}, {CLASSES} classes, features {WIDTH} wide, {given.device}", rows, TARGETS)
    device = machine.gpu if given.device == "cuda" else f"{machine.cpu}, {machine.threads} threads"
    versions = f"torch {machine.torch}, timm {machine.timm}"
    console.print(f"{device} · Python {platform.python_version()} · {versions} · seed 0", style="dim", highlight=False)
    if given.json:
        save(given.json, rows)


# --- Time and memory ----------------------------------------------------------------------------------------------


def step_fractions(device: torch.device, rounds: int) -> list[Row]:
    """Every objective and the bare steps, by turns."""
    on_gpu = device.type == "cuda"
    sizes = {True: 224, False: 224} if on_gpu else {True: 64, False: 224}
    images = {224: BATCH if on_gpu else 8, 64: 64}
    bare = {size: bare_step(size, images[size], device) for size in set(sizes.values())}
    steps = {name: step(name, sizes[True], device) for name in KNOWN}
    seconds: dict[str, list[float]] = {name: [] for name in [*steps, *(f"step_{size}" for size in bare)]}
    memory = {name: peak_bytes(entry, device) for name, entry in steps.items()}  # the first call, which warms up
    for entry in bare.values():
        entry()
    for _ in range(rounds):
        for size, entry in bare.items():
            seconds[f"step_{size}"].append(timed(entry, device) * BATCH / images[size])
        for name, entry in steps.items():
            seconds[name].append(timed(entry, device))
    fractions = {
        name: ratio(f"share_{name}", seconds[name], seconds[f"step_{sizes['maps' in needs(name)]}"]) for name in steps
    }
    worst = max((entry for name, entry in fractions.items() if name != "crd"), key=lambda entry: entry.value)
    return [
        Row("worst_objective_share", worst.value, "×", worst.low, worst.high),
        *sorted(fractions.values(), key=lambda entry: -entry.value),
        *(row(f"seconds_{name}", values, "s") for name, values in seconds.items()),
        *(row(f"memory_{name}", [size / 1e6], "MB") for name, size in memory.items()),
    ]


def needs(name: str) -> frozenset[str]:
    cls = KNOWN[name].component
    assert cls is not None and issubclass(cls, Objective)
    return cls.needs


def bare_step(size: int, images: int, device: torch.device) -> Callable[[], None]:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=CLASSES).to(device, memory_format=torch.channels_last).train()
    x = torch.randn(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(images, device=device) % CLASSES

    def run() -> None:
        F.cross_entropy(model(x), labels).backward()
        model.zero_grad(set_to_none=True)

    return run


def step(name: str, size: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward of an objective, down to the student's outputs."""
    torch.manual_seed(0)
    term, student, teacher, batch = example(name, BATCH, size, device)
    leaves = [tensor for tensor in tree_leaves([vars(student)]) if isinstance(tensor, Tensor)]

    def run() -> None:
        term(student, teacher, batch).backward()
        for tensor in [*leaves, *term.parameters()]:
            tensor.grad = None

    return run


def example(name: str, samples: int, size: int, device: torch.device) -> tuple[Objective, Features, Features, Targets]:
    """An objective with its defaults, and outputs of the fields that it reads."""

    def shapes(widths: tuple[int, ...]) -> FeatureShapes:
        maps = {f"layer{n + 1}": (width, size >> n + 2, size >> n + 2) for n, width in enumerate(widths)}
        return FeatureShapes(CLASSES, WIDTH, maps, nn.Linear(WIDTH, CLASSES))

    def outputs(of: FeatureShapes, learns: bool) -> Features:
        def random(*shape: int) -> Tensor:
            tensor = torch.randn(samples, *shape, device=device)
            form = torch.channels_last if len(shape) == 3 else torch.contiguous_format
            return tensor.contiguous(memory_format=form).requires_grad_(learns)

        reads = needs(name)
        return Features(
            random(CLASSES) if "logits" in reads else None,
            random(WIDTH) if "pooled" in reads else None,
            {stage: random(*shape) for stage, shape in of.maps.items()} if "maps" in reads else {},
            random(CLASSES) if "token" in reads else None,
        )

    own, reference = shapes(STUDENT_MAPS), shapes(TEACHER_MAPS)
    settings = KNOWN[name](type=name)  # type: ignore[call-arg]
    term = settings.component(settings, own, reference)  # type: ignore[misc, call-arg]
    assert isinstance(term, Objective)
    term.remember(torch.arange(SAMPLES) % CLASSES)
    index = torch.randperm(SAMPLES)[:samples].to(device)
    batch = Targets(index % CLASSES, index)
    return term.to(device), outputs(own, learns=True), outputs(reference, learns=False), batch


def timed(run: Callable[[], None], device: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """Peak of the bytes that ``run`` allocates."""
    if device.type == "cuda":
        run()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


# --- CRD's traffic ------------------------------------------------------------------------------------------------


def crd_rows() -> list[Row]:
    """Bytes of CRD at the size in its paper, and of the usual way to compute it."""
    torch.manual_seed(0)
    term, student, teacher, batch = example("crd", 64, 64, torch.device("cpu"))
    assert isinstance(term, CRD)
    term(student, teacher, batch)  # the first step of a run also sets the normalizer
    with Traffic() as own:
        term(student, teacher, batch).backward()
    with Traffic() as plain:
        plain_crd(term, student, teacher, batch).backward()
    return [
        row("crd_bytes_vs_reference", [own.bytes / REFERENCE_BYTES], "×"),
        row("crd_bytes", [own.bytes / 1e6], "MB"),
        row("crd_bytes_plain", [plain.bytes / 1e6], "MB"),
    ]


def plain_crd(term: CRD, student: Features, teacher: Features, batch: Targets) -> Tensor:
    """The loss with its own negatives for each sample, as in the paper's equation: ``[B, 1 + K, P]`` of both banks."""
    assert student.pooled is not None and teacher.pooled is not None
    rows_B, count = batch.indices(), term.settings.negatives
    places = torch.cat([rows_B[:, None], torch.randint(SAMPLES, (len(rows_B), count))], dim=1)
    embedded = F.normalize(term.student_projector(student.pooled))
    reference = F.normalize(term.teacher_projector(teacher.pooled))
    noise, total = count / SAMPLES, torch.zeros(())
    for own, bank in ((embedded, term.teacher_bank), (reference, term.student_bank)):
        chosen = bank.index_select(0, places.flatten()).view(*places.shape, -1)
        h = ((chosen @ own[:, :, None]).squeeze(2) / term.settings.temperature).exp()
        h = h / (h.detach().mean() * SAMPLES)
        total = total - (h[:, 0] / (h[:, 0] + noise)).log().mean() - (noise / (h[:, 1:] + noise)).log().sum(1).mean()
    return total


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write: all inputs and outputs, for lookups only the rows concerned."""

    LOOKUPS = ("aten::index", "aten::index_select", "aten::gather", "aten::embedding")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves([args, kwargs]) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        name = func._schema.name
        held = {t.untyped_storage().data_ptr() for t in read}
        view = not func._schema.is_mutable and all(t.untyped_storage().data_ptr() in held for t in written)
        if name in self.LOOKUPS:
            self.bytes += sum(2 * size(t) for t in written) + sum(size(t) for t in read[1:])
        elif name.startswith("aten::index_put"):
            self.bytes += 2 * size(read[-1]) + sum(size(t) for t in read[1:-1])
        elif not view:
            self.bytes += sum(size(t) for t in [*read, *written])
        return result


def size(tensor: Tensor) -> int:
    """Bytes; an expanded tensor is read once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


if __name__ == "__main__":
    main()
