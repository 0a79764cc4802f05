"""The parts of ``continual.py`` that are whole runs of streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from continual_data import CIFAR, FLOWERS, TEST, TRAIN, data_tree, source
from continual_lab import figure
from continual_runs import stream_run
from lab import Figure, Lab, seeds

from distill.continual.orders import order_disparity

HELD_OUT = 0.2
QUICK_EPOCHS = {"bank": 2, "opd": 1, "adapted": 3, "halrp": 2, "branch": 5}
SHORT = {"opd": 1, "halrp": 2, "branch": 5}
"""Epochs of parts that are shorter than their configs also without ``--quick``; a GPU runs the configs whole."""
OPD_SIZE = 64
LETTERS = ("A", "B", "C", "D", "E")


def length(lab: Lab, part: str) -> dict[str, Any]:
    """Changes to the config for shorter fits."""
    epochs = lab.given.epochs or (QUICK_EPOCHS[part] if lab.given.quick else SHORT.get(part))
    return {} if epochs is None else {"training": {"epochs": epochs, "validate_every": epochs}}


def described(lab: Lab, part: str, what: str, of: Sequence[Any], name: str) -> str:
    """The detail of a figure: data, seeds or orders, and what differs from the config."""
    short = length(lab, part)
    parts = [what, f"{name} {', '.join(map(str, of))}"]
    parts += [f"{short['training']['epochs']} epochs"] if short else []
    parts += [f"with {' '.join(lab.given.set)}"] if lab.given.set else []
    return "; ".join(parts)


def bank(lab: Lab) -> Iterator[Figure]:
    """A bank against linear heads for each task."""
    of = seeds(lab)
    plain = {"controls": {"sequential": False}, "inference": []}
    lines = [on_cifar(lab, "bank", seed, plain) for seed in of]
    images = f"{TRAIN} training ({HELD_OUT:.0%} held out) and {TEST} test images of each class of CIFAR-100"
    detail = described(lab, "bank", f"{images}, 10 tasks, 96 px", of, "seeds")
    own = [line["metrics"]["student, task: accuracy_micro"] for line in lines]
    heads = [line["metrics"]["task heads, task: accuracy_micro"] for line in lines]
    forgotten = [line["metrics"]["student, task: forgetting"] for line in lines]
    served = [last(line, "served bytes after {}") / len(line["tasks"]) for line in lines]
    yield figure("bank_til_minus_heads", [a - b for a, b in zip(own, heads)], "fraction", detail)
    yield figure("bank_til", own, "fraction", detail)
    yield figure("task_heads_til", heads, "fraction", detail)
    yield figure("bank_forgetting", forgotten, "fraction", detail)
    yield figure("bank_served_bytes_a_task", served, "bytes", detail)
    of_slda = [line["metrics"]["slda, task: accuracy_micro"] for line in lines]
    yield figure("bank_slda_til", of_slda, "fraction", detail)
    yield from spent_elsewhere("stream_overhead", "bank_stream_seconds", lines, detail)


def opd(lab: Lab) -> Iterator[Figure]:
    """Whether a bank depends on the order of the tasks, for which short fits of small images are enough."""
    orders = LETTERS[:2] if lab.given.quick else LETTERS[:3]
    changes = {
        "controls": {"heads": False, "sequential": False},
        "heads": [],
        "inference": [],
        "student": {"network": {"size": OPD_SIZE}},
    }
    lines = [on_cifar(lab, "opd", 0, {**changes, "stream": {"task_order": order}}) for order in orders]
    spread = order_disparity([line["final"]["student, task"] for line in lines])
    what = f"CIFAR-100, {TRAIN} training images of each class, {OPD_SIZE} px, seed 0"
    detail = described(lab, "opd", what, orders, "orders")
    yield figure("bank_opd", [spread.maximum], "fraction", f"{detail}; the largest of the ten tasks")


def on_cifar(lab: Lab, part: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """A run of the bank on the part of CIFAR-100."""
    given = lab.given
    data = data_tree(CIFAR, given.data, given.out, HELD_OUT)
    tree = {"seed": seed, "data": data, **length(lab, part), **changes}
    return stream_run(lab, part, "halrp_lite0.yaml", tree, given.set)


def adapted(lab: Lab) -> Iterator[Figure]:
    """A delta of the first task, then SLDA, against SLDA on frozen features; the seed is also that of the order."""
    of = seeds(lab)
    lines = [on_flowers(lab, seed) for seed in of]
    detail = described(
        lab, "adapted", f"61 kinds of flowers: 20, then 10 in a task; {FLOWERS.size} px", of, "seeds (orders)"
    )
    own = [line["metrics"]["student + slda, class: accuracy_micro"] for line in lines]
    frozen = [line["metrics"]["slda, class: accuracy_micro"] for line in lines]
    yield figure("adapted_slda_minus_slda", [a - b for a, b in zip(own, frozen)], "fraction", detail)
    yield figure("adapted_slda_last", own, "fraction", detail)
    yield figure("frozen_slda_last", frozen, "fraction", detail)


def on_flowers(lab: Lab, seed: int) -> dict[str, Any]:
    given = lab.given
    changes = {
        "seed": seed,
        "data": data_tree(FLOWERS, given.data, given.out, HELD_OUT),
        "stream": {"order_seed": seed},
        "heads": [{"type": "slda"}],
        "inference": [],
        "controls": {"heads": False},
        **length(lab, "adapted"),
    }
    return stream_run(lab, "adapted", "class_incremental_flowers.yaml", changes, given.set)


NO_CONTROLS = {"sequential": False, "separate": False}
GO_ON: dict[str, Any] = {
    "strategy": {"type": "sequential"},
    "student": {"deltas": [], "train": "full"},
    "objectives": [{"type": "ce", "among": "present"}],
}
HALRP_RUNS: dict[str, dict[str, Any]] = {
    "halrp": {},
    "sequential": GO_ON,
    "ewc": {**GO_ON, "regularizers": [{"type": "ewc"}]},
    "task_heads": {"strategy": {"growth": None, "reprune": False}, "student": {"deltas": []}},
}
"""Run → changes to ``halrp_splits.yaml``. A loss among the classes of the task is that of a head for each task."""


def halrp(lab: Lab) -> Iterator[Figure]:
    """HALRP's protocol against what is simpler and what is larger."""
    orders = lab.given.orders.split(",") if lab.given.orders else list(LETTERS[:2] if lab.given.quick else LETTERS)
    (seed,) = seeds(lab, (0,))
    runs = {run: [on_lenet(lab, run, order, seed, order == orders[0]) for order in orders] for run in HALRP_RUNS}
    detail = described(lab, "halrp", f"CIFAR-100 in 10 tasks, LeNet, seed {seed}, task known", orders, "orders")
    accuracies = {
        run: [line["metrics"]["student, task: accuracy_macro"] for line in lines] for run, lines in runs.items()
    }
    differences = [a - b for a, b in zip(accuracies["halrp"], accuracies["sequential"])]
    yield figure("halrp_acc_minus_sequential", differences, "fraction", detail)
    for run, lines in runs.items():
        yield figure(f"{run}_acc", accuracies[run], "fraction", detail)
        forgotten = [line["metrics"]["student, task: forgetting"] for line in lines]
        yield figure(f"{run}_forgetting", forgotten, "fraction", detail)
        if len(orders) > 1:
            spread = order_disparity([line["final"]["student, task"] for line in lines])
            yield figure(f"{run}_aopd", [spread.average], "fraction", detail)
            yield figure(f"{run}_mopd", [spread.maximum], "fraction", detail)
    whole = runs["halrp"][0]
    yield figure("separate_acc", [whole["metrics"]["separate, task: accuracy_macro"]], "fraction", detail)
    beside = f"{detail}; bytes of files besides the first task's network, of the bytes of its weights"
    yield figure("halrp_growth", [grown(line, "student") for line in runs["halrp"]], "fraction", beside)
    yield figure("separate_growth", [grown(whole, "separate")], "fraction", beside)


def on_lenet(lab: Lab, run: str, order: str, seed: int, separate: bool) -> dict[str, Any]:
    """A run of the protocol.

    Args:
        lab: of the benchmark.
        run: of ``HALRP_RUNS``.
        order: of the tasks.
        seed: of the run.
        separate: also train a whole network for each task, which is the same in every order.

    Returns:
        See ``stream_run``.
    """
    given = lab.given
    changes: dict[str, Any] = {
        "seed": seed,
        "data": {"source": source(given.data / CIFAR.folder, given.out), "workers": 0},
        "stream": {"task_order": order},
        "controls": {**NO_CONTROLS, "separate": separate and run == "halrp"},
        **length(lab, "halrp"),
        **HALRP_RUNS[run],
    }
    return stream_run(lab, "halrp", "halrp_splits.yaml", changes, given.set)


def last(line: dict[str, Any], name: str) -> float:
    """A metric of the bank after the last task."""
    return line["metrics"][f"student, task: {name.format(line['tasks'][-1])}"]


def grown(line: dict[str, Any], model: str) -> float:
    """What is served after the last task beyond what was after the first, of the backbone's bytes."""
    after = [line["metrics"][f"{model}, task: growth after {line['tasks'][at]}, served"] for at in (-1, 0)]
    return after[0] - after[1]


def overhead(lab: Lab) -> Iterator[Figure]:
    """What the quickest stream shows, and the share of its wall time outside fits, heads and evaluation.

    A run pays once for its checks, the verification of what it exports in a new process, and the report. In a stream of
    a few minutes that is a large share, so the share has its bar in the longer streams of ``bank``.
    """
    of = seeds(lab)
    lines = [stream_run(lab, "overhead", "quick.yaml", {"seed": seed}, []) for seed in of]
    detail = f"configs/continual/quick.yaml, 5 tasks of digits, 4 epochs, seeds {', '.join(map(str, of))}"
    known = f"{detail}; where the task of an image is known"
    for run, name in (("sequential", "quick_sequential_til_forgetting"), ("student", "quick_bank_forgetting")):
        yield figure(name, [line["metrics"][f"{run}, task: forgetting"] for line in lines], "fraction", known)
    among = f"{detail}; among all classes seen so far"
    forgotten = [line["metrics"]["sequential, class: forgetting"] for line in lines]
    yield figure("quick_sequential_forgetting", forgotten, "fraction", among)
    served = [last(line, "served bytes after {}") / len(line["tasks"]) for line in lines]
    yield figure("quick_bank_served_bytes_a_task", served, "bytes", detail)
    yield from spent_elsewhere(
        "quick_stream_overhead", "quick_stream_seconds", lines, f"{detail}; the bar is that of a quiet machine"
    )


def spent_elsewhere(name: str, seconds: str, lines: Sequence[dict[str, Any]], detail: str) -> Iterator[Figure]:
    """Share of the wall time outside fits, heads and evaluation, of the runs that were not stopped on the way.

    Args:
        name: of the figure.
        seconds: name of the figure of the whole times.
        lines: results of ``stream_run``.
        detail: of both figures.

    Yields:
        Both figures; they are not measured if every run was stopped and continued.
    """
    timed = [line for line in lines if line["seconds"] is not None]
    if not timed:
        detail = f"{detail}; every run was stopped and continued, so its time is not known"
    yield figure(name, [1 - line["useful"] / line["seconds"] for line in timed], "share", detail)
    yield figure(seconds, [line["seconds"] for line in timed], "s", detail)
