"""The parts of ``transfer.py`` about an unlabeled target domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import part_of, source
from transfer_lab import Figure, Lab, figure, run, seeds

TRAIN, TEST = 400, 200
"""Images of each class of MNIST and USPS."""
NAMES = {
    "source only": "source_only",
    "standardized": "standardized",
    "AdaBN": "adabn",
    "aligned statistics": "aligned",
    "mean of both": "mean_of_both",
    "student": "student",
}
"""Row of a run → end of the figure's name."""
CONTROLS = {"controls": {"adabn": True, "aligned": True}}
"""Named, so that a run of another set of rows is another run."""
GAIN = "student minus source only, from which it starts: it has been trained for more updates"
SHORT: dict[str, Any] = {"training": {"epochs": 1}, "source_training": {"epochs": 1, "validate_every": 1}}


def usps(lab: Lab) -> Iterator[Figure]:
    """MNIST → USPS."""
    of = seeds(lab)
    lines = [
        run(lab, "usps", "mnist_usps.yaml", {"seed": seed, "data": digits(lab), **CONTROLS, **short(lab)})
        for seed in of
    ]
    detail = f"{10 * TRAIN:,} + {10 * TRAIN:,} training images, {10 * TEST:,} test images, 64 px; seeds {listed(of)}"
    yield from rows("usps", lines, detail)


def sketch(lab: Lab) -> Iterator[Figure]:
    """Photographs → sketches."""
    of = seeds(lab)
    lines = [photos(lab, seed) for seed in of]
    yield from rows("sketch", lines, f"PACS, photo to sketch, 128 px; seeds {listed(of)}")


def quick(lab: Lab) -> Iterator[Figure]:
    """The config that needs nothing but the install: what the student gains, and how long all of it takes."""
    of = seeds(lab)
    lines = [run(lab, "quick", "quick.yaml", {"seed": seed, **CONTROLS, **short(lab)}) for seed in of]
    detail = f"digits, darker and noisier digits as target, configs/transfer/quick.yaml; seeds {listed(of)}"
    gain = [line["rows"]["student"] - line["rows"]["source only"] for line in lines]
    yield figure("quick_student", [line["rows"]["student"] for line in lines], "fraction", detail)
    yield figure("quick_gain", gain, "fraction", f"{detail}; {GAIN}")
    own = [{**line["seconds"], "source": line["trained"]["source only"]} for line in lines]  # may be of another run
    seconds = [sum(stages.values()) for stages in own]
    yield figure("quick_seconds", seconds, "s", f"{detail}; wall time of all stages")


def source_free(lab: Lab) -> Iterator[Figure]:
    """Photographs → sketches, without the photographs."""
    of = seeds(lab)
    lines = []
    for seed in of:
        folder = Path(photos(lab, seed)["folder"])
        changes = {"seed": seed, "start": str(folder / "source-only" / "delta"), "data": sketches(lab), **free(lab)}
        lines.append(run(lab, "source_free", "source_free.yaml", changes))
    detail = f"PACS, sketches alone, from the delta of the source-only student, 128 px; seeds {listed(of)}"
    names = "student", "AdaBN", "aligned statistics"
    student, adabn, aligned = ([line["rows"][name] for line in lines] for name in names)
    yield figure("sketch_source_free", student, "fraction", detail)
    yield figure("sketch_source_free_aligned", aligned, "fraction", detail)
    yield figure("sketch_source_free_adabn", adabn, "fraction", detail)
    gain = [a - b for a, b in zip(student, adabn)]
    yield figure("sketch_source_free_minus_adabn", gain, "fraction", detail)


def photos(lab: Lab, seed: int) -> dict[str, Any]:
    given = lab.given
    data = {"source": source(given.data / "pacs_photo", given.out), "target": sketches(lab)["source"]}
    return run(lab, "sketch", "photo_sketch.yaml", {"seed": seed, "data": data | RESIDENT, **CONTROLS, **short(lab)})


def sketches(lab: Lab) -> dict[str, Any]:
    return {"source": source(lab.given.data / "pacs_sketch", lab.given.out), **RESIDENT}


RESIDENT = {"workers": 0, "on_device": True}


def digits(lab: Lab) -> dict[str, Any]:
    given, counts = lab.given, {"train": TRAIN, "test": TEST}
    parts = {
        name: part_of(given.data / name, given.out / f"{name}-{TRAIN}-{TEST}", counts) for name in ("mnist", "usps")
    }
    return {"source": source(parts["mnist"], given.out), "target": source(parts["usps"], given.out), **RESIDENT}


def rows(part: str, lines: list[dict[str, Any]], detail: str) -> Iterator[Figure]:
    """The accuracy of every row, and what the student gains over the source-only one."""
    for name, own in NAMES.items():
        yield figure(f"{part}_{own}", [line["rows"][name] for line in lines], "fraction", detail)
    gain = [line["rows"]["student"] - line["rows"]["source only"] for line in lines]
    yield figure(f"{part}_gain", gain, "fraction", f"{detail}; {GAIN}")
    kept = [line["metrics"]["source test accuracy of student"] for line in lines]
    yield figure(f"{part}_student_on_source", kept, "fraction", detail)


def short(lab: Lab) -> dict[str, Any]:
    return SHORT if lab.given.quick else {}


def free(lab: Lab) -> dict[str, Any]:
    return {"training": {"epochs": 1}} if lab.given.quick else {}


def listed(of: list[int]) -> str:
    return ", ".join(map(str, of))
