"""Serving: many deltas over one backbone in memory, a batch of images with a delta and a head for each.

    python benchmarks/serving.py [--only PARTS] [--quick] [--out FOLDER] [--markdown FILE]

It needs no data: EfficientNet-Lite0 with random low-rank deltas of rank 4 on the 32 pointwise convs and heads of 61
classes of their own, on one thread. The part ``batch`` needs peft (the extra ``bench``), ``load`` fastapi and uvicorn.

=======  ==============================================================================================================
batch    16 images of 16 tasks, at 128 and 64 px, by a bank in one pass; by one merged model (the floor: no images of
         other tasks), by 16 merged models, by one model whose weights are pointed to each task's merged ones, and by
         peft's mixed batch (``adapter_names=``). All sides are called in every round, so ratios are of neighbors
tenants  batches of 16 random tasks out of 10, 100 and 1,000 that are in memory, and the memory of a bank with
         ``max_bytes`` for 10 tasks after it served all of them
load     ``examples/delta_server.py`` on loopback: 10,000 requests for 1,000 tasks, of which half fit ``max_bytes``; an
         answer proves whose delta and head gave it, and for which image
=======  ==============================================================================================================

Every finished measurement is a line of ``results.jsonl`` in ``--out``, and a stopped run continues where it stopped.
"""

from __future__ import annotations

import copy
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import measure  # this folder's augment.py must not hide the package
import torch
from lab import Bars, Figure, Lab, Parts, figure_with, measure_parts, options
from measure import ratio, seconds_by_turns
from serving_load import load_test, write_tenants
from torch import Tensor, nn

import distill
from distill.deltas.attach import attach, merge
from distill.deltas.base import stored_bytes
from distill.deltas.low_rank import LowRank
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, delta_state
from distill.export.delta.bank import DeltaBank
from distill.export.delta.io import load_delta, save_delta
from distill.models.fingerprint import fingerprint
from distill.models.timm_models import new_classifier

LITE0, RANK, CLASSES, TASKS = "embedded:tf_efficientnet_lite0", 4, 61, 16
POINTWISE = ("*.conv_pw", "*.conv_pwl")
BARS: Bars = {
    "batch16_vs_one_model_128": ("≤", 1.45),
    "batch16_vs_one_model_64": ("≤", 1.45),
    "batch16_vs_peft_128": ("≤", 0.75),
    "batch16_vs_peft_64": ("≤", 0.75),
    "batch16_vs_in_turn_64": ("≤", 0.40),
    "bank_memory_vs_merged": ("≤", 0.15),
    "batch_error_128": ("≤", 5e-6),
    "batch_error_64": ("≤", 5e-6),
    "time_1000_vs_10": ("≤", 1.1),
    "memory_1000_vs_10": ("≤", 1.1),
    "load_wrong": ("=", 0),
    "load_requests": ("≥", 10000),
}
"""Flat is at most a tenth more."""
figure = figure_with(BARS)


def backbone() -> nn.Module:
    network = distill.create_student(LITE0, num_classes=CLASSES, size=128).model
    return network.requires_grad_(False).eval()


def write_tasks(folder: Path, count: int, plain: nn.Module) -> list[str]:
    """Delta files with random numbers, and their names."""
    identity = fingerprint(backbone_state(plain, classifier_names(plain)))
    model = copy.deepcopy(plain)
    attach(model, [LowRank.Settings(rank=RANK, sites=POINTWISE)], classifier_names(model))
    head = model.get_submodule(classifier_names(model)[0])
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, tensor in [*delta_state(model).items(), *head.named_parameters()]:
                scale = tensor.shape[-1] ** -0.5 if name.endswith(".A") else 0.02
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
        save_delta(folder / str(number), model, identity, origin="random")
    return [str(number) for number in range(count)]


def filled(plain: nn.Module, folder: Path, names: Sequence[str], max_bytes: int | None = None) -> DeltaBank:
    bank = DeltaBank(plain, max_bytes=max_bytes)
    for name in names:
        bank.add(name, folder / name)
    return bank


# --- One batch ----------------------------------------------------------------------------------------------------


def batch(lab: Lab) -> Iterator[Figure]:
    """Ratios of times at 128 and 64 px, memory, and the difference from the merged models."""
    rounds = 3 if lab.given.quick else 41
    for size in (128, 64):
        key = {"part": "batch", "size": size, "rounds": rounds}
        yield from of_size(size, rounds, lab.once(key, partial(times, size, rounds)))


def of_size(size: int, rounds: int, line: dict[str, Any]) -> Iterator[Figure]:
    """The figures of one size of images.

    Args:
        size: of the images, in pixels.
        rounds: that were measured.
        line: what was measured.

    Yields:
        Figures.
    """
    seconds = line["seconds"]
    about = f"lite0, {size} px, 16 images of 16 tasks, rank {RANK}, one thread"
    ratios = {
        "batch16_vs_one_model": ("bank", "one_model"),
        "batch16_vs_in_turn": ("bank", "in_turn"),
        "batch16_vs_switch": ("bank", "switch"),
        "batch16_vs_peft": ("bank", "peft"),
        "one_task_vs_one_model": ("one_task", "one_model"),
    }
    for name, (over, under) in ratios.items():
        row = ratio(f"{name}_{size}", seconds[over], seconds[under])
        yield Figure(row, f"{about}; median and quartiles of {rounds} rounds", BARS.get(row.name))
    milliseconds = [1e3 * value for value in seconds["bank"]]
    yield Figure(measure.row(f"batch16_ms_{size}", milliseconds, "ms"), f"{about}; depends on the machine")
    detail = f"{about}; largest difference of logits over the largest logit, of any image"
    yield figure(f"batch_error_{size}", [line["error"]], "×", f"{detail}, from the merged models")
    yield figure(f"merged_error_{size}", [line["merged_error"]], "×", f"{detail}, of merged models from fp64")
    if size == 128:
        detail = "bytes of all tensors of the bank (backbone, deltas, heads) over those of 16 merged models"
        yield figure("bank_memory_vs_merged", [line["bank_bytes"] / line["merged_bytes"]], "×", detail)


def times(size: int, rounds: int) -> dict[str, Any]:
    """Seconds of each side, its largest error, bytes."""
    plain = backbone()
    images = torch.randn(TASKS, 3, size, size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(Path(folder), TASKS, plain)
        bank = filled(plain, Path(folder), names)
        merged = []
        for name in names:
            model = load_delta(Path(folder) / name, plain)
            merge(model)
            merged.append(model.requires_grad_(False))
        logits = bank.batch(images, names)
    live = copy.deepcopy(merged[0])
    targets = dict(live.state_dict(keep_vars=True))
    states = [model.state_dict() for model in merged]

    def in_turn() -> list[Tensor]:
        return [model(images[n : n + 1])[0] for n, model in enumerate(merged)]

    def switch() -> list[Tensor]:
        outputs = []
        for number, state in enumerate(states):
            for key, target in targets.items():
                target.data = state[key]
            outputs.append(live(images[number : number + 1])[0])
        return outputs

    sides: dict[str, Callable[[], object]] = {
        "bank": lambda: bank.batch(images, names),
        "one_model": lambda: merged[0](images),
        "in_turn": in_turn,
        "switch": switch,
        "peft": by_peft(plain, images, merged),
        "one_task": lambda: bank.batch(images, names[:1] * TASKS),
    }
    with torch.no_grad():
        expected = in_turn()
        exact = [copy.deepcopy(model).double()(image[None])[0] for model, image in zip(merged, images.double())]
        seconds = seconds_by_turns(sides, rounds)
    return {
        "seconds": seconds,
        "error": largest(logits, expected),
        "merged_error": largest(expected, exact),
        "bank_bytes": bank.size + stored_bytes(plain.state_dict()),
        "merged_bytes": sum(stored_bytes(model.state_dict()) for model in merged),
    }


def largest(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference of any image's logits."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(logits, expected))


def by_peft(plain: nn.Module, images: Tensor, merged: Sequence[nn.Module]) -> Callable[[], object]:
    """peft's mixed batch of 16 LoRA adapters on the same layers with the same rank; heads by one product, as here."""
    from peft import LoraConfig, get_peft_model

    network = copy.deepcopy(plain)
    new_classifier(network, 0)
    layers = [name for name, _ in network.named_modules() if name.endswith((".conv_pw", ".conv_pwl"))]
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=layers, init_lora_weights=False)
    model = get_peft_model(network, config, adapter_name="t0")
    names = [f"t{number}" for number in range(TASKS)]
    for name in names[1:]:
        model.add_adapter(name, config)
    model.eval()
    heads = [each.get_classifier() for each in merged]  # type: ignore[operator]
    weight, bias = torch.stack([head.weight for head in heads]), torch.stack([head.bias for head in heads])
    return lambda: torch.baddbmm(bias[:, None], model(images, adapter_names=names)[:, None], weight.mT)


# --- Many tasks ---------------------------------------------------------------------------------------------------


def tenants(lab: Lab) -> Iterator[Figure]:
    """Time of a batch out of 10, 100 and 1,000 tasks, and memory within ``max_bytes``."""
    counts = (10, 50, 100) if lab.given.quick else (10, 100, 1000)
    rounds = 3 if lab.given.quick else 41
    line = lab.once({"part": "tenants", "counts": counts, "rounds": rounds}, lambda: among(counts, rounds))
    detail = f"64 px, batches of 16 random tasks of {counts[0]} … {counts[-1]} in memory, median of {rounds} rounds"
    most, least = (line["seconds"][str(count)] for count in (counts[-1], counts[0]))
    ratios = [median(a / b for a, b in zip(most, least))]
    yield figure("time_1000_vs_10", ratios, "×", detail)
    middle = [median(a / b for a, b in zip(line["seconds"][str(counts[1])], least))]
    yield figure("time_100_vs_10", middle, "×", detail)
    detail = f"the process after serving all of {counts[-1]} tasks over that after {counts[0]}, max_bytes for 10"
    kept, resident = line["kept"], line["resident"]
    yield figure("memory_1000_vs_10", [resident[-1] / resident[0]], "×", f"resident memory of {detail}")
    yield figure("kept_1000_vs_10", [kept[-1] / kept[0]], "×", f"bytes of tasks that are kept, {detail}")
    yield figure("added_bytes_a_task", [(resident[-1] - resident[0]) / counts[-1]], "bytes", f"growth of {detail}")
    yield figure("add_ms", [1e3 * line["add"]], "ms", f"registering a task, of {counts[-1]}")
    yield figure("load_ms", [1e3 * line["load"]], "ms", f"reading, checking and preparing a task, of {counts[-1]}")


def among(counts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds of batches by number of tasks, and memory of one bank that serves more and more tasks."""
    plain = backbone()
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    chosen = random.Random(0)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = write_tasks(folder, counts[-1], plain)
        bounded = filled(plain, folder, names[: counts[0]])
        size = bounded.load(names[0]).size
        bounded = filled(plain, folder, [], max_bytes=10 * size)
        kept, resident = [], []
        for before, count in zip((0, *counts), counts):
            for name in names[before:count]:
                bounded.add(name, folder / name)
            for first in range(0, count, 10):
                bounded.batch(images[:10], names[first : first + 10])
            kept.append(bounded.size)
            resident.append(resident_bytes())
        del bounded
        begun = time.perf_counter()
        bank = filled(plain, folder, names)
        add = (time.perf_counter() - begun) / len(names)
        begun = time.perf_counter()
        for name in names:
            bank.load(name)
        load = (time.perf_counter() - begun) / len(names)

    def some(count: int) -> Callable[[], object]:
        return lambda: bank.batch(images, [names[chosen.randrange(count)] for _ in images])

    seconds = seconds_by_turns({str(count): some(count) for count in counts}, rounds)
    return {"seconds": seconds, "kept": kept, "resident": resident, "add": add, "load": load}


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- A server -----------------------------------------------------------------------------------------------------


def load(lab: Lab) -> Iterator[Figure]:
    """Requests to the example's server, and whose answers they got."""
    count, requests = (50, 300) if lab.given.quick else (1000, 10000)
    line = lab.once({"part": "load", "tenants": count, "requests": requests}, lambda: served(count, requests))
    detail = f"{count} tasks, {requests} requests by 32 connections on loopback, 64 px, half of the tasks fit max_bytes"
    seconds = sorted(line["seconds"])
    yield figure("load_requests", [float(len(seconds))], "", f"answers to check; {detail}")
    yield figure("load_wrong", [float(len(line["wrong"]))], "", f"by another's delta or head, or failed; {detail}")
    yield figure("load_images_a_pass", [len(seconds) / len(line["batches"])], "", detail)
    yield figure("load_files_read", [float(line["reads"])], "", f"read and checked again after eviction; {detail}")
    yield figure("load_requests_a_second", [len(seconds) / line["wall"]], "1/s", f"one machine; {detail}")
    yield figure("load_p50_ms", [1e3 * seconds[len(seconds) // 2]], "ms", detail)
    yield figure("load_p99_ms", [1e3 * seconds[len(seconds) * 99 // 100]], "ms", detail)


def served(count: int, requests: int) -> dict[str, Any]:
    """What a load test counted."""
    plain = backbone()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        names = write_tenants(folder, plain, count)
        size = filled(plain, folder, names[:1]).load(names[0]).size
        bank = filled(plain, folder, names, max_bytes=size * count // 2)
        answers = load_test(bank, names, requests, size=64)
    return {**vars(answers), "wrong": answers.wrong[:20] if len(answers.wrong) > 20 else answers.wrong}


PARTS: Parts = {"batch": batch, "tenants": tenants, "load": load}
ABOUT = (
    "Many deltas over one backbone: `python benchmarks/serving.py`. EfficientNet-Lite0 with random low-rank deltas of "
    "rank 4 on the 32 pointwise convs, heads of 61 classes; one thread. Ratios are of neighbors in one run."
)


def main() -> None:
    torch.set_num_threads(1)
    measure_parts(options(__doc__, PARTS, "serving").parse_args(), PARTS, "Serving", ABOUT)


if __name__ == "__main__":
    main()
