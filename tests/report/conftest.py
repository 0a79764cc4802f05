"""A run small enough to check by hand: six test images of three classes, four models."""

import math

import pytest

from distill.report.items import Check, Estimate, Row, Series
from distill.report.summary import Machine, RunSummary


def series(*values):
    return Series(steps=tuple(range(0, 10 * len(values), 10)), epochs=tuple(range(len(values))), values=values)


@pytest.fixture
def machine():
    return Machine(python="3.11.7", torch="2.15.0", cpu="some CPU, 2 cores", threads=2)


@pytest.fixture
def bare(machine):
    """Nothing but what must be there."""
    return RunSummary(title="bare", seed=3, machine=machine, config="seed: 3\n")


@pytest.fixture
def run(bare):
    rows = (
        Row(
            name="linear probe",
            what="frozen backbone",
            accuracy=3 / 6,
            agreement=4 / 6,
            trained=30,
            bytes=120,
            seconds=8,
        ),
        Row(name="labels only", accuracy=4 / 6, trained=4652008, bytes=92400, seconds=75),
        Row(
            name="student",
            what="low-rank deltas",
            measures={
                "accuracy": Estimate(value=5 / 6, low=0.4365, high=0.9699),
                "macro_f1": Estimate(value=0.8222, low=0.5, high=1.0),
            },
            accuracy=5 / 6,
            agreement=1.0,
            trained=900,
            bytes=92400,
            seconds=4000,
        ),
        Row(name="teacher", accuracy=5 / 6),
    )
    return bare.model_copy(
        update={
            "title": "three flowers",
            "rows": rows,
            "sizes": {"delta": 92400, "backbone": 13_600_000},
            "seconds": {"teacher fit": 75.0, "distillation": 4000.0},
            "paths": {"delta": "runs/x/delta.safetensors"},
            "curves": {
                "student": {
                    "loss": series(3.0, 2.0, math.nan, 1.0),
                    "loss/kd": series(2.0, 1.0, 0.5),
                    "lr": series(1.0),
                },
                "teacher": {"val/accuracy": series(0.5, 0.8)},
            },
            "classes": ("rose", "tulip", "daisy"),
            "labels": (0, 0, 1, 1, 2, 2),
            "predictions": {
                "linear probe": (0, 1, 1, 0, 2, 0),
                "student": (0, 0, 1, 1, 2, 1),
                "teacher": (0, 0, 1, 1, 2, 1),
            },
            "verification": (Check(name="merged equals unmerged", passed=True, detail="256 images"),),
            "warnings": ("2 corrupt images were skipped",),
        }
    )
