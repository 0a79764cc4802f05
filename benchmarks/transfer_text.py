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
    made, teacher = ([line["rows"][name] for line in lines] for name in ("student", "teacher"))
    yield figure("text_student", made, "fraction", detail)
    yield figure("text_conse_teacher", teacher, "fraction", detail)
    yield figure("text_student_minus_conse", [a - b for a, b in zip(made, teacher)], "fraction", detail)
    yield figure("text_student_top5", [line["metrics"]["test top-5 accuracy"] for line in lines], "fraction", detail)


def cifar(lab: Lab) -> dict[str, Any]:
    """A part of CIFAR-100 as it is: 32 pixels."""
    counts = {"train": TRAIN, "test": TEST}
    own = part_of(lab.given.data / "cifar100", lab.given.out / f"cifar100-{TRAIN}-{TEST}", counts)
    return {"source": source(own, lab.given.out), "size": 32, "workers": 0, "on_device": True}


def definitions(lab: Lab) -> Iterator[Figure]:
    """ConSE on CIFAR-100 by names and with definitions, and the linear heads that are fitted to it."""
    changes = {"method": "conse", "unseen": 0, "text": {"texts": "both"}, "data": cifar(lab)}
    line = run(lab, "text", "zero_shot.yaml", {**changes, "student": {"network": {"size": 96}}})
    detail = f"CIFAR-100, {100 * TEST:,} test images, 96 px; texts were chosen on training images"
    rows = {"conse": "ConSE, {}", "folded": "{}"}
    for own, row in rows.items():
        values = {}
        for texts in ("names", "names + definitions"):
            short, measured = texts.replace("names + ", ""), line["measures"][row.format(texts)]
            for name, key in (("top1", "accuracy"), ("top5", "top5_accuracy")):
                values[short, name] = measured[key]
                yield figure(f"text_{own}_{short}_{name}", [measured[key]], "fraction", detail)
        for name in ("top1", "top5"):
            gain = values["definitions", name] - values["names", name]
            ends = f"definitions_minus_names_{name}"
            yield figure(f"text_{ends}" if own == "conse" else f"text_{own}_{ends}", [gain], "fraction", detail)


def flowers(lab: Lab) -> Iterator[Figure]:
    """20 unseen classes of flowers61, by a map that is fitted to the other 41."""
    given, of = lab.given, list(range(1 if lab.given.quick else 5))
    data = {"source": source(given.data / "flowers61", given.out), "workers": 0}
    lines = [run(lab, "text", "zero_shot.yaml", {"seed": seed, "data": data}) for seed in of]
    detail = f"20 unseen of 61 classes, 128 px, chance 0.05; choices of the classes by seeds {of}"
    for name in ("top-1", "top-5"):
        values = {}
        for row in ("names", "definitions", "shuffled definitions"):
            own = f"text_unseen_flowers_{row.replace(' ', '_')}_{name.replace('-', '')}"
            values[row] = [line["metrics"][f"{name} of unseen classes, {row}"] for line in lines]
            yield figure(own, values[row], "fraction", detail)
        gain = [a - b for a, b in zip(values["definitions"], values["names"])]
        yield figure(f"text_unseen_flowers_gain_{name.replace('-', '')}", gain, "fraction", detail)


def text(lab: Lab) -> Iterator[Figure]:
    """All of it, the quick parts first."""
    yield from definitions(lab)
    yield from flowers(lab)
    yield from student(lab)
