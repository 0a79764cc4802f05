"""The part ``detection`` of ``transfer.py``: a detector on a backbone with distilled maps, and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from transfer_lab import Figure, Lab, figure, run, seeds

EPOCHS, SIZES = 12, {"min_size": 160, "max_size": 224}
"""Epochs and learning rates were chosen on the validation images (``benchmarks/results/transfer.md``)."""
PLAIN = {"network": {"model": "embedded:tf_efficientnet_lite0"}, "start": None}
NEW_PARTS = {"optimizer": {"lr": 1e-3}}
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "frozen": ({"deltas": []}, NEW_PARTS),
    "deltas": ({}, NEW_PARTS),
    "whole": (
        {"deltas": [], "train": "full", "batch_norm": "frozen"},
        {"optimizer": {"lr": 1e-4, "head_lr_factor": 10}},
    ),
}
"""Name → what is trained of the backbone, and with which learning rates. New parts have the same in all."""


def detection(lab: Lab) -> Iterator[Figure]:
    """Blood cells (BCCD): mAP at IoU 0.5 on the test images, for the three ways to train the backbone."""
    of = seeds(lab, (0,))
    epochs = 1 if lab.given.quick else EPOCHS
    data = {"source": {"root": str(lab.given.data.resolve() / "bccd")}, "workers": 0}
    detail = f"RetinaNet, 64 channels, 160 px, {epochs} epochs of 205 images; 72 test images; seeds {of}"
    for way, (backbone, training) in WAYS.items():
        made: dict[str, list[float]] = {"plain": [], "distilled": []}
        for seed in of:
            maps = run(lab, "detection", "detection_maps.yaml", {"seed": seed, "data": data, "training": short(lab)})
            starts = {"plain": PLAIN, "distilled": {"start": maps["folder"]}}
            for name, start in starts.items():
                changes = {
                    "seed": seed,
                    "data": data,
                    "backbone": {**start, **backbone},
                    "detector": SIZES,
                    "controls": {"undistilled": False},
                    "training": {"epochs": epochs, "validate_every": epochs, **training},
                }
                line = run(lab, "detection", "detection.yaml", changes)
                made[name].append(line["metrics"]["test map50 of student"])
        yield figure(f"detection_map50_{way}", made["plain"], "fraction", detail)
        yield figure(f"detection_map50_{way}_distilled", made["distilled"], "fraction", detail)
        gain = [student - control for student, control in zip(made["distilled"], made["plain"])]
        yield figure(f"detection_map50_{way}_distilled_minus_plain", gain, "fraction", detail)


def short(lab: Lab) -> dict[str, Any]:
    return {"epochs": 1} if lab.given.quick else {}
