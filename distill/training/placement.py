"""Chooses where the views of a fit are made: on the device or by the loader's workers; see :mod:`augment.placement`."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from augment.dual import DualAugment
from augment.placement import LoaderViews, to_device
from distill.data.loader import TrainLoader
from distill.data.samplers import SequentialSampler
from distill.files import write_atomic
from distill.training.teacher_cache import TeacherCache

PLACEMENT = "placement.json"
BATCHES = 6
"""Batches that are timed on each side, after one for each worker as warm-up."""
GAIN = 1.1
"""The loader's side is chosen if it is faster by this factor; views on the device are not rounded to uint8."""

Placement = Literal["device", "loader"]


def choose_placement(
    dual: DualAugment,
    loader: TrainLoader,
    folder: Path,
    device: torch.device,
    console: Console | None,
    cache: TeacherCache | None = None,
) -> Placement:
    """Configure a loader to make views if the settings say so; ``auto`` measures both sides once.

    Call it before the loader's first pass, which starts the workers.

    Args:
        dual: makes the views; its settings hold the placement.
        loader: of the fit; with "loader", its workers make the views.
        folder: of the fit; holds the result of the measurement, for a resumed fit.
        device: of the fit.
        console: where to print the result of the measurement; None prints nothing.
        cache: of the teacher's outputs; workers make no teacher's views for batches that it holds.

    Returns:
        "device" or "loader".
    """
    where = dual.settings.placement
    chosen: Placement = _measured(dual, loader, folder, device, console) if where == "auto" else where
    if chosen == "loader":
        loader.reader.views = LoaderViews(dual, cache.has if cache is not None else None)
    return chosen


def read_placement(dual: DualAugment, folder: Path) -> Placement:
    """Where the views of the fit in ``folder`` are made; the device if ``auto`` has not been measured."""
    where = dual.settings.placement
    if where != "auto":
        return where
    kept = folder / PLACEMENT
    return json.loads(kept.read_text())["placement"] if kept.is_file() else "device"


def seconds_per_batch(dual: DualAugment, loader: TrainLoader, place: Placement, device: torch.device) -> float:
    """Measures the time that the loader and the augmentation take for a batch of views, without training.

    Args:
        dual: makes the views, on ``device``.
        loader: of the fit; its settings are used for a separate loader.
        place: where the views are made.
        device: of the fit.

    Returns:
        Seconds per batch.
    """
    reader = copy.copy(loader.reader)
    reader.views = LoaderViews(dual) if place == "loader" else None
    warmup = max(1, loader.workers)
    size = min(loader.sampler.per_rank, len(reader.subset))
    batches = (warmup + BATCHES) * size
    trial = loader.beside(reader, SequentialSampler(min(batches, len(reader.subset) // size * size), size))
    count, started = 0, time.perf_counter()
    try:
        for batch in trial:
            dual(to_device(batch.pixels, device), batch.ids, 0)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            count += 1
            if count == warmup:
                count, warmup, started = 0, 0, time.perf_counter()
    finally:
        trial.close()
    return (time.perf_counter() - started) / max(count, 1)


def _measured(
    dual: DualAugment, loader: TrainLoader, folder: Path, device: torch.device, console: Console | None
) -> Placement:
    if (folder / PLACEMENT).is_file():
        return read_placement(dual, folder)
    chosen: Placement = "device"
    seconds: dict[str, float] = {}
    if loader.workers:
        for side in ("device", "loader"):
            seconds[side] = seconds_per_batch(dual.to(device), loader, side, device)  # type: ignore[arg-type]
        chosen = "loader" if seconds["loader"] * GAIN < seconds["device"] else "device"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / PLACEMENT, json.dumps({"placement": chosen, "seconds_per_batch": seconds}).encode())
    if console is not None:
        durations = ", ".join(f"{1e3 * value:.1f} ms on the {side}'s side" for side, value in seconds.items())
        reason = f"a batch of views takes {durations}" if seconds else "there are no workers"
        console.print(f"augmentation runs on the {chosen}'s side: {reason}")
    return chosen
