"""Measures exported formats, each in a process of its own: outputs on real images, times beside PyTorch, and memory.

The fresh process (``python -m distill.export.measure FOLDER``) imports the packages of the format, loads it, runs each
batch size once, and reads its memory. Only then it builds the live model, as eager PyTorch would serve it: with its
deltas merged where they can be. The two run in turn, in an order that changes by round, so that another load of the
machine falls on both; what is compared is the ratio within a round.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from augment.base import Settings, UserError
from distill.deltas.attach import deltas
from distill.deltas.base import StructuralDelta
from distill.export.checksummed import ExportError
from distill.export.settings import TARGETS, MeasureSettings
from distill.export.targets.base import ExportTarget
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.verify import NamedBackbone, fresh_process, load_student
from distill.models.network import timm_with_own_models
from distill.report.items import Latency

WARM_UP = 2
"""Calls of each batch size before those that count."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_EAGER = "eager"


@dataclass(frozen=True)
class Measurement:
    """What a fresh process measured.

    Args:
        target: None: the live model itself, by PyTorch.
        logits: [N, K] of all images.
        load_seconds: of opening the session.
        peak_bytes: see :class:`distill.report.items.FormatFigures`.
        cores: CPU seconds per second of the timed calls.
        bytes: of the format's files, or of the live model's tensors.
        latencies: by batch size.
    """

    target: ExportTarget | None
    logits: Tensor
    load_seconds: float
    peak_bytes: int | None
    cores: float
    bytes: int
    latencies: tuple[Latency, ...]


class _MeasureRequest(Settings):
    """Input of the fresh process, besides ``images.safetensors`` and the live model."""

    target: dict[str, Any] | None
    """Settings of the target; None: the live model."""
    folder: str
    delta: str | None
    """Of a live model whose deltas cannot be merged; None: it is a timm folder in ``eager``."""
    backbone: NamedBackbone | None
    allow_plugins: bool
    rounds: int
    threads: int
    batches: tuple[int, ...]


class _Measured(Settings):
    """Output of the fresh process, besides ``logits.safetensors``; seconds of each call that counts."""

    load_seconds: float
    peak_bytes: int | None
    cores: float
    eager_bytes: int
    seconds: dict[int, tuple[float, ...]]
    eager_seconds: dict[int, tuple[float, ...]]


def measure_formats(
    targets: Mapping[Path, ExportTarget],
    images: Tensor,
    model: nn.Module,
    settings: MeasureSettings,
    *,
    delta: Path | None = None,
    backbone: NamedBackbone | None = None,
    live: bool = True,
    fresh: bool = True,
    allow_plugins: bool = False,
) -> Iterator[Measurement]:
    """Measure the live model in PyTorch, then each format.

    Args:
        targets: folder → the target that wrote it.
        images: [N, 3, H, W] fp32, normalized as the student's input; real images.
        model: the live model.
        settings: rounds, threads and batch sizes.
        delta: the delta folder of a model whose deltas cannot be merged.
        backbone: of it.
        live: whether the live model is measured by itself too.
        fresh: in new processes; False: in this one, for a check before training, whose figures mean nothing.
        allow_plugins: import delta classes outside this package that the delta file names.

    Yields:
        The measurements, the live model's first.

    Raises:
        ExportError: a process cannot load a format, or a merged folder is not possible and there is no delta file.
    """
    structural = any(isinstance(site.delta, StructuralDelta) for site in deltas(model))
    if structural and (delta is None or backbone is None):
        raise ExportError("deltas that cannot be merged: measuring needs the delta folder and its backbone")
    with TemporaryDirectory() as name:
        work = Path(name)
        pixels = images.detach().float().cpu().contiguous()
        safetensors.torch.save_file({"images": pixels}, work / "images.safetensors")
        if not structural:
            write_timm_folder(work / _EAGER, model, origin="")
        plain: dict[str, Any] = {
            "delta": str(delta.resolve()) if structural and delta is not None else None,
            "backbone": backbone if structural else None,
            "allow_plugins": allow_plugins,
            **settings.model_dump(include={"rounds", "threads", "batches"}),
        }
        environment = dict.fromkeys(_THREADS, str(settings.threads))
        for folder, target in [*([(work, None)] if live else []), *targets.items()]:
            own = None if target is None else target.settings.model_dump(mode="json")
            request = _MeasureRequest(target=own, folder=str(folder.resolve()), **plain)
            (work / "request.json").write_text(request.model_dump_json())
            if fresh:
                _run_fresh(work, environment)
            else:
                _fresh_process(work)
            measured = _Measured.model_validate_json((work / "measured.json").read_text())
            yield Measurement(
                target=target,
                logits=safetensors.torch.load((work / "logits.safetensors").read_bytes())["logits"],
                load_seconds=measured.load_seconds,
                peak_bytes=measured.peak_bytes if fresh else None,
                cores=measured.cores,
                bytes=measured.eager_bytes if target is None else _bytes_in(folder),
                latencies=tuple(
                    latency(batch, seconds, measured.eager_seconds[batch])
                    for batch, seconds in sorted(measured.seconds.items())
                ),
            )


def latency(batch: int, seconds: tuple[float, ...], eager: tuple[float, ...]) -> Latency:
    """The figures of a batch size.

    Args:
        batch: number of images in a call.
        seconds: of each call.
        eager: of PyTorch's call in the same round.

    Returns:
        Median and 90th percentile, the median of the rounds' ratios, and images per second at the median.
    """
    middle, high = np.percentile(seconds, (50, 90)).tolist()
    ratios = [own / other for own, other in zip(seconds, eager, strict=True)]
    return Latency(
        batch=batch,
        p50_ms=1000 * middle,
        p90_ms=1000 * high,
        eager_ratio=median(ratios),
        images_per_second=batch / middle,
    )


def _run_fresh(work: Path, environment: Mapping[str, str]) -> None:
    with fresh_process(work, "distill.export.measure", environment):
        pass


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


Call = Callable[[Tensor], Tensor]


def _fresh_process(work: Path) -> None:
    request = _MeasureRequest.model_validate_json((work / "request.json").read_text())
    images = safetensors.torch.load((work / "images.safetensors").read_bytes())["images"]
    batches = {batch: _batch(images, batch) for batch in request.batches}
    target = _target(request)
    memory = _Memory()
    begun = time.perf_counter()
    eager: Call | None = None
    if target is None:
        model = _live_model(request, work)
        eager = run = _eager(model)
    else:
        run = target.session(Path(request.folder))
    load_seconds = time.perf_counter() - begun
    for batch in batches.values():
        run(batch)
    peak = memory.peak()
    size = max(request.batches)
    logits = torch.cat([run(part).float().cpu() for part in images.split(size)]).contiguous()
    if eager is None:
        model = _live_model(request, work)
        eager = _eager(model)
    timer = Timer(run, eager)
    seconds, eager_seconds = {}, {}
    for number, batch in batches.items():
        seconds[number], eager_seconds[number] = timer.rounds(batch, request.rounds)
    measured = _Measured(
        load_seconds=load_seconds,
        peak_bytes=peak,
        cores=timer.cores,
        eager_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()),
        seconds=seconds,
        eager_seconds=eager_seconds,
    )
    safetensors.torch.save_file({"logits": logits}, work / "logits.safetensors")
    (work / "measured.json").write_text(measured.model_dump_json())


def _target(request: _MeasureRequest) -> ExportTarget | None:
    """The target, with its packages imported, since their memory and time are not the format's."""
    if request.target is None:
        timm_with_own_models()
        return None
    settings = TARGETS.settings_of(request.target["type"]).model_validate(request.target)
    target: ExportTarget = settings.component(settings)  # type: ignore[misc]
    target.threads = request.threads
    target.import_runtime()
    return target


def _batch(images: Tensor, size: int) -> Tensor:
    """The first images, again and again if there are fewer."""
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size].contiguous()


def _live_model(request: _MeasureRequest, work: Path) -> nn.Module:
    if request.delta is not None:
        return load_student(Path(request.delta), request.backbone, work, request.allow_plugins).eval()
    return timm_with_own_models().create_model(f"local-dir:{(work / _EAGER).resolve()}", pretrained=True).eval()


def _eager(model: nn.Module) -> Call:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(images).float()

    return run


class Timer:
    """Times a format beside PyTorch, one call of each in every round.

    Args:
        run: the format.
        eager: the live model; the same function: it is timed alone.
        clock: seconds.
        cpu: CPU seconds of all threads of this process.
    """

    def __init__(
        self,
        run: Call,
        eager: Call,
        clock: Callable[[], float] = time.perf_counter,
        cpu: Callable[[], float] = time.process_time,
    ):
        self.run, self.eager, self.clock, self.cpu = run, eager, clock, cpu
        self.wall = self.used = 0.0

    @property
    def cores(self) -> float:
        """CPU seconds per second of the format's calls that counted."""
        return self.used / self.wall if self.wall else 0.0

    def rounds(self, batch: Tensor, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Seconds of each call of the format, and of PyTorch.

        Args:
            batch: of each call.
            count: rounds that count.

        Returns:
            Two numbers for each round.
        """
        own: list[float] = []
        other: list[float] = []
        for number in range(-WARM_UP, count):
            sides = [(self.run, own)] if self.run is self.eager else [(self.run, own), (self.eager, other)]
            for call, seconds in sides[:: 1 if number % 2 else -1]:
                cpu, begun = self.cpu(), self.clock()
                call(batch)
                wall = self.clock() - begun
                if number < 0:
                    continue
                seconds.append(wall)
                if call is self.run:
                    self.wall += wall
                    self.used += self.cpu() - cpu
        return tuple(own), tuple(own if self.run is self.eager else other)


class _Memory:
    """The growth of this process's resident memory, its peak; only Linux can forget an earlier peak."""

    def __init__(self) -> None:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")
        except OSError:
            self.before = None

    def peak(self) -> int | None:
        """Bytes since the start; None where that is not known."""
        highest = _status("VmHWM") if self.before is not None else None
        return None if highest is None or self.before is None else max(0, highest - self.before)


def _status(name: str) -> int | None:
    """A number of ``/proc/self/status`` in bytes."""
    line = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return None if line is None else 1024 * int(line[1])


if __name__ == "__main__":
    try:
        # Set before anything starts a thread pool; the environment tells those that start at import.
        torch.set_num_threads(int(os.environ[_THREADS[0]]))
        _fresh_process(Path(sys.argv[1]))
    except UserError as wrong:
        sys.exit(str(wrong))
