"""The part of ``transfer.py`` about texts of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import part_of, source
from transfer_lab import Figure, Lab, figure, run, seeds

TRAIN, TEST = 50, 30
"""Images of each class of CIFAR-100."""


def student(lab: Lab) -> Iterator[Figure]:
    """CIFAR-100 from a teacher of ImageNet's classes, without a label."""
    of = seeds(lab)
    short = {"training": {"epochs": 1}} if lab.given.quick else {}
    lines = [run(lab, "text", "text_teacher.yaml", {"seed": seed, "data": cifar(lab), **short}) for seed in of]
    detail = f"CIFAR-100, {100 * TRAIN:,} training images without labels, {100 * TEST:,} test images, 96 px; seeds {of}"
    taught, conse = ([line["rows"][name] for line in lines] for name in ("student", "teacher"))
    yield figure("text_student", taught, "fraction", detail)
    yield figure("text_conse_teacher", conse, "fraction", detail)
    yield figure("text_student_minus_conse", [a - b for a, b in zip(taught, conse)], "fraction", detail)
    yield figure("text_student_top5", [line["metrics"]["test top-5 accuracy"] for line in lines], "fraction", detail)


def cifar(lab: Lab) -> dict[str, Any]:
    """A part of CIFAR-100 as it is: 32 pixels."""
    counts = {"train": TRAIN, "test": TEST}
    own = part_of(lab.given.data / "cifar100", lab.given.out / f"cifar100-{TRAIN}-{TEST}", counts)
    return {"source": source(own, lab.given.out), "size": 32, "workers": 0, "on_device": True}


def text(lab: Lab) -> Iterator[Figure]:
    """All of it."""
    yield from student(lab)
