"""Branch-Tuning against fine-tuning in streams without labels: a part of ``continual.py``.

ResNet-20 from scratch on CIFAR-100 in five tasks, 50 training images of each class, short training. After the last
task a linear classifier of all 100 classes is fitted on frozen features. The papers' full recipe is
``configs/continual/branch_tuning.yaml``, which takes hours on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import CIFAR, part_of, source
from continual_lab import figure
from continual_parts import described, length
from continual_runs import stream_run
from lab import Figure, Lab, seeds

COUNTS = {"train": 50, "test": 20}
OBJECTIVES = ("simclr", "barlow_twins")
WAYS: dict[str, dict[str, Any]] = {
    "branch": {},
    "finetune": {"strategy": {"type": "sequential"}, "student": {"train": "full", "deltas": []}},
}
"""Way of learning → changes to ``branch_tuning.yaml``."""
LINEAR = "student, linear, representation: accuracy_micro"


def branch(lab: Lab) -> Iterator[Figure]:
    """Accuracy of a linear classifier after the last task."""
    of = seeds(lab)
    what = f"ResNet-20, CIFAR-100 in 5 tasks, {COUNTS['train']} training images of each class"
    detail = described(lab, "branch", what, of, "seeds")
    differences = []
    for objective in OBJECTIVES:
        last = {way: [learned(lab, objective, way, seed)["metrics"][LINEAR] for seed in of] for way in WAYS}
        own = [a - b for a, b in zip(last["branch"], last["finetune"])]
        differences += own
        yield figure(f"branch_minus_finetune_linear_{objective}", own, "fraction", detail)
        for way, accuracies in last.items():
            yield figure(f"{way}_linear_{objective}", accuracies, "fraction", detail)
    yield figure("branch_minus_finetune_linear", differences, "fraction", detail)


def learned(lab: Lab, objective: str, way: str, seed: int) -> dict[str, Any]:
    """A run; see ``stream_run``."""
    given = lab.given
    folder = part_of(given.data / CIFAR.folder, given.out / f"cifar100-{COUNTS['train']}-{COUNTS['test']}", COUNTS)
    own = WAYS[way]
    changes = {
        **own,
        "seed": seed,
        "data": {"source": source(folder, given.out), "batch_size": 128, "workers": 0},
        "teacher": None,
        "student": {"network": {"model": "resnet20_cifar"}, **own.get("student", {})},
        "objectives": [{"type": objective}],
        "training": {
            **length(lab, "branch")["training"],
            "optimizer": {"type": "sgd", "lr": 0.06, "nesterov": False, "weight_decay": 1e-5},
            "schedule": {"warmup": 0.5},
        },
    }
    return stream_run(lab, "branch", "branch_tuning.yaml", changes, given.set)
