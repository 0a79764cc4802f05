"""The part ``ema`` of ``transfer.py``: what an averaged teacher costs beside a frozen one of the same network.

It has one normalization. With two (``teacher.ema.normalizations``), its forward pass is computed twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import torch
from measure import seconds_by_turns
from transfer_lab import Figure, Lab, figure

import distill

LITE0, SIZE, BATCH, RANK = "embedded:tf_efficientnet_lite0", 64, 32, 4
SIDES = {"ema": ["ce", {"type": "self_training"}], "frozen": ["ce", "kd"]}


def ema(lab: Lab) -> Iterator[Figure]:
    """Memory over the deltas and the head, and the time of a step over that with a frozen teacher."""
    rounds = 3 if lab.given.quick else 41

    def work() -> dict[str, Any]:
        return measured(rounds)

    line = lab.once({"part": "ema", "rounds": rounds, "size": SIZE, "batch": BATCH, "rank": RANK}, work)
    detail = (
        f"EfficientNet-Lite0, {SIZE} px, rank {RANK}, batches of {BATCH}; teacher of one normalization (two take two "
    )
    detail += f"passes); CPU time of one process, {rounds} rounds"
    yield figure("ema_teacher_memory_over_delta", [line["memory"] / line["delta"]], "×", detail)
    ratios = [a / b for a, b in zip(line["seconds"]["ema"], line["seconds"]["frozen"])]
    yield figure("ema_teacher_step", [sorted(ratios)[len(ratios) // 2]], "×", f"{detail}; median")


def measured(rounds: int) -> dict[str, Any]:
    """Bytes of the averaged teacher that the student does not share, bytes of deltas and head, seconds of steps."""
    steps = {name: made(objectives, name == "ema") for name, objectives in SIDES.items()}
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    ids, labels = torch.arange(BATCH), torch.arange(BATCH) % 10
    sides = {name: _runner(step, images, ids, labels) for name, step in steps.items()}
    seconds = seconds_by_turns(sides, rounds, time.process_time)
    average, student = steps["ema"].momentum, steps["ema"].student
    shared = {tensor.data_ptr() for tensor in student.state_dict().values()}
    own = {t.data_ptr(): t.numel() * t.element_size() for t in average.state_dict().values()}
    memory = sum(size for pointer, size in own.items() if pointer not in shared)
    delta = {t.data_ptr(): t.numel() * t.element_size() for t in student.own_state().values()}
    return {"memory": memory, "delta": sum(delta.values()), "seconds": seconds}


def made(objectives: list[Any], averaged: bool) -> Any:
    """A training step."""
    torch.manual_seed(0)
    deltas = [{"type": "low_rank", "rank": RANK}]
    student = distill.create_student(LITE0, deltas, num_classes=10, size=SIZE, needs=frozenset({"logits"}))
    teacher = None if averaged else distill.create_teacher(LITE0, num_classes=10, size=SIZE)
    seen = [student.input] if averaged else teacher
    augment = distill.create_augment("weak_teacher", student=student, teacher=seen)
    decay = (0.99, 0.99) if averaged else None
    step = distill.create_step(student, teacher, objectives, augment, steps_per_epoch=100, momentum=decay)
    return step.train()


def _runner(step: Any, images: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        step(images, ids, labels, epoch=0, step=0).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step.after_update(0)

    return run
