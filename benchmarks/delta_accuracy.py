"""Accuracy against bytes: every delta at equal sizes, and baselines, on 61 kinds of flowers.

    python benchmarks/delta_accuracy.py DATA [--arms NAMES] [--seeds 0,1,2] [--epochs 6] [--size 96] [--out FOLDER]

DATA is a folder with ``train*.parquet`` and ``test*.parquet``. EfficientNet-Lite0 with ImageNet weights, labels alone
(cross-entropy), crops, flips and color jitter; a fifth of train is held out.

**Choices** are made on the held-out part: the linear probe's regularization, and for every method the learning rate,
out of ``--rates``, by short fits of seed 0 at the middle budget. **Test** accuracy is measured once per arm and seed,
after the last epoch. Bytes are those of the deltas' parameters as fp32, without the head, which every arm has; all are
trained for the same number of epochs. Full fine-tuning keeps its batch-norm statistics, as the students do.

Arms: ``linear probe``, ``nearest class mean`` (cosine to the mean pooled feature of a class, without any gradient),
``full``, ``METHOD`` for those of one size (norm affine, bias, scale and shift), and ``METHOD@BUDGET``. At a budget

- methods with a rank get ``ranks: {budget, importance}``: ``uniform``, HALRP ``fisher``, ``low_rank`` all of
  ``delta_arms.ALLOCATIONS``;
- methods with a width get the largest that fits, sparse ones the density;
- the others are attached to as many layers as fit, from the last layer on.

An arm without a setting near its budget is left out and named. Every finished arm is a line of ``results.jsonl`` in
``--out``; a second start with the same options measures what is missing. At the end it prints a table, which
``--markdown FILE`` also writes, and draws ``pareto.png``.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import torch
from accuracy import STUDENT, VIEW, Notebook, data_of, percent, tell, train_student, training
from delta_arms import Arm, all_arms
from rich.console import Console
from torch.nn import functional as F

from distill.deltas.base import DeltaError, tensor_bytes
from distill.deltas.state import delta_bytes
from distill.experiments.distillation import DistillationExperiment
from distill.models.network import create_network
from distill.models.student import Student
from distill.run.context import RunContext, make_data
from distill.run.predict import predict_pooled, predict_student
from distill.stages.linear_probe import FitLinearProbe
from distill.training.signals import StopSignal

MIDDLE = "200KB"
"""The budget at which a method's learning rate is chosen."""
OF_WHOLE = 1 / 3
"""Full fine-tuning chooses among the rates times this: the largest rates for deltas are too large for it."""


@dataclass(frozen=True)
class Outcome:
    arm: str
    seed: int
    bytes: int
    accuracy: float
    held_out: float | None
    lr: float | None
    seconds: float


def outcomes(book: Notebook) -> list[Outcome]:
    return [Outcome(**line) for line in book.with_key("accuracy")]


class Lab:
    """The data, opened once, and the fits."""

    def __init__(self, given: argparse.Namespace, stop: StopSignal):
        self.given, self.stop = given, stop
        self.data = make_data(self.experiment(0))
        self.classes = len(self.data.classes)
        self.backbone = create_network(self.experiment(0).student.network, self.classes).model
        self.arms: list[Arm] = []

    def experiment(
        self, seed: int, arm: Arm | None = None, lr: float = 1e-3, epochs: int | None = None
    ) -> DistillationExperiment:
        given, arm = self.given, arm or Arm("")
        frozen = {"batch_norm": "frozen"} if arm.train == "full" else {}
        network = {"model": STUDENT, "size": given.size}
        return DistillationExperiment.model_validate(
            {
                "name": "delta-accuracy",
                "output": str(given.out),
                "seed": seed,
                "data": data_of(given.data, given.out / "cache", given.size, given.workers),
                "augment": {"policy": "identical", "student": list(VIEW)},
                "student": {"network": network, "train": arm.train, "deltas": list(arm.deltas), **frozen},
                "objectives": ["ce"],
                "training": training(epochs or given.epochs, lr),
            }
        )

    def context(self, experiment: DistillationExperiment) -> RunContext:
        context = RunContext.of(experiment, self.stop)
        return replace(context, data=self.data) if experiment.seed == 0 else context

    def fit(self, arm: Arm, seed: int, lr: float, epochs: int | None = None) -> tuple[Student, RunContext]:
        experiment = self.experiment(seed, arm, lr, epochs)
        context = self.context(experiment)
        folder = self.given.out / "fits" / f"{arm.name} seed {seed} lr {lr:g} epochs {epochs or self.given.epochs}"
        return train_student(experiment, context, folder).student, context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train*.parquet and test*.parquet")
    parser.add_argument("--arms", help="comma-separated names or beginnings of names; default: all")
    parser.add_argument("--list", action="store_true", help="name the arms and their bytes, and train nothing")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rates", default="1e-3,4e-3", help="learning rates to choose from")
    parser.add_argument("--tune-epochs", type=int, default=2, help="of the fits that choose the learning rate")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/delta-accuracy"))
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    given = parser.parse_args()
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    rates = [float(rate) for rate in given.rates.split(",")]
    options = {"epochs": given.epochs, "tune_epochs": given.tune_epochs, "rates": rates, "size": given.size}
    book = Notebook(given.out, options)
    with StopSignal() as stop:
        lab = Lab(given, stop)
        lab.arms = all_arms(lab.backbone, console)
        arms = [arm for arm in lab.arms if not given.arms or arm.name.startswith(tuple(given.arms.split(",")))]
        if given.list:
            for arm in arms:
                size = "" if arm.bytes is None else f": {arm.bytes:,} bytes"
                console.print(f"{arm.name}{size}", highlight=False)
            return
        for seed in [int(seed) for seed in given.seeds.split(",")]:
            done = {outcome.arm for outcome in outcomes(book) if outcome.seed == seed}
            for arm in arms:
                if arm.name not in done:
                    stop.raise_if_received()
                    try:
                        outcome = outcome_of(lab, book, arm, seed, rates)
                    except DeltaError as error:
                        console.print(f"{arm.name} is left out: {error}", style="yellow")
                        continue
                    book.add(asdict(outcome))
                    console.print(
                        f"seed {seed} {arm.name}: {outcome.accuracy:.1%} on test, {outcome.bytes:,} bytes, "
                        f"{outcome.seconds:.0f} s",
                        highlight=False,
                    )
    report(outcomes(book), given.out, console, given.markdown)


# --- Measuring ----------------------------------------------------------------------------------------------------


def outcome_of(lab: Lab, book: Notebook, arm: Arm, seed: int, rates: list[float]) -> Outcome:
    begun = time.perf_counter()
    if arm.name in WITHOUT_TRAINING:
        experiment = lab.experiment(seed)
        held_out, accuracy = WITHOUT_TRAINING[arm.name](experiment, lab.context(experiment), lab.classes)
        return Outcome(arm.name, seed, 0, accuracy, held_out, None, time.perf_counter() - begun)
    lr = chosen_rate(lab, book, arm, rates)
    begun = time.perf_counter()
    student, context = lab.fit(arm, seed, lr)
    held_out, accuracy = (predict_student(context, student, split).accuracy() for split in ("val", "test"))
    assert accuracy is not None
    size = tensor_bytes(student.model.parameters()) if arm.train == "full" else delta_bytes(student.model)
    return Outcome(arm.name, seed, size, accuracy, held_out, lr, time.perf_counter() - begun)


def chosen_rate(lab: Lab, book: Notebook, arm: Arm, rates: list[float]) -> float:
    """The best on the held-out part after short fits of seed 0, once per method, at the middle budget or its own."""
    known = {line["rate_of"]: line["lr"] for line in book.with_key("rate_of")}
    if arm.method in known:
        return known[arm.method]
    if len(rates) == 1:
        return rates[0]
    if arm.train == "full":
        rates = [OF_WHOLE * rate for rate in rates]
    siblings = [other for other in lab.arms if other.method == arm.method]
    tuned = next((other for other in siblings if other.name.endswith(f"@{MIDDLE}")), arm)
    scores = {}
    for lr in rates:
        student, context = lab.fit(tuned, 0, lr, lab.given.tune_epochs)
        scores[lr] = predict_student(context, student, "val").accuracy() or 0.0
    best = max(scores, key=lambda lr: scores[lr])
    book.add({"rate_of": arm.method, "lr": best, "tuned_on": tuned.name, "held_out": scores})
    return best


def probe(experiment: DistillationExperiment, context: RunContext, classes: int) -> tuple[float | None, float]:
    folder = experiment.output / "fits" / f"linear probe seed {experiment.seed}"
    fitted = FitLinearProbe("linear-probe", experiment.student.network).run(context, folder)
    assert fitted is not None
    held_out, accuracy = (fitted.predict(context, split).accuracy() for split in ("val", "test"))  # type: ignore[arg-type]
    assert accuracy is not None
    return held_out, accuracy


def class_means(experiment: DistillationExperiment, context: RunContext, classes: int) -> tuple[float | None, float]:
    torch.manual_seed(experiment.seed)
    network = create_network(experiment.student.network)
    train = predict_pooled(context, network, context.labeled_loader(network.input))
    features = F.normalize(train.logits, dim=1)
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, torch.as_tensor(train.labels), features)
    means = F.normalize(sums, dim=1)
    accuracies = []
    for split in ("val", "test"):
        seen = predict_pooled(context, network, context.loader(split, network.input))  # type: ignore[arg-type]
        closest = (F.normalize(seen.logits, dim=1) @ means.T).argmax(1)
        accuracies.append(float((closest == torch.as_tensor(seen.labels)).float().mean()))
    return accuracies[0], accuracies[1]


WITHOUT_TRAINING: dict[str, Callable[[DistillationExperiment, RunContext, int], tuple[float | None, float]]] = {
    "linear probe": probe,
    "nearest class mean": class_means,
}


# --- Showing ------------------------------------------------------------------------------------------------------


def report(outcomes: list[Outcome], folder: Path, console: Console, markdown: Path | None) -> None:
    """Print the table, and draw accuracy over bytes with the Pareto front.

    Bars are the standard deviation over seeds.
    """
    rows = [(name, [run for run in outcomes if run.arm == name]) for name in dict.fromkeys(run.arm for run in outcomes)]
    lines = []
    for name, runs in rows:
        held_out = [run.held_out for run in runs if run.held_out is not None]
        lines.append(
            [
                name,
                f"{mean(run.bytes for run in runs):,.0f}",
                percent([run.accuracy for run in runs]),
                percent(held_out) if held_out else "–",
                str(len(runs)),
                "–" if runs[0].lr is None else f"{runs[0].lr:g}",
                f"{mean(run.seconds for run in runs):.0f}",
            ]
        )
    tell(console, ["arm", "bytes", "test, %", "held out, %", "seeds", "lr", "s"], lines, markdown)
    draw(rows, folder / "pareto.png")
    console.print(f"wrote {folder / 'pareto.png'} and {folder / 'results.jsonl'}", highlight=False)


def draw(rows: list[tuple[str, list[Outcome]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    points: dict[str, list[tuple[float, float]]] = {}
    for name, runs in rows:
        accuracies = [100 * run.accuracy for run in runs]
        size, accuracy = mean(run.bytes for run in runs), mean(accuracies)
        if size and len(runs) > 1:
            axes.errorbar(size, accuracy, stdev(accuracies), color="0.6", linewidth=1, capsize=2, zorder=0)
        if size:
            points.setdefault(name.partition("@")[0], []).append((size, accuracy))
        else:
            axes.axhline(accuracy, color="0.6", linestyle=":", linewidth=1)
            axes.annotate(name, (1, accuracy), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for number, (method, places) in enumerate(points.items()):
        places.sort()
        style = {"marker": "osD^vP*X"[number % 8], "markersize": 5, "linewidth": 1}
        axes.plot(*zip(*places), label=method, color=f"C{number % 10}", **style)
    front, best = [], 0.0
    for size, accuracy in sorted(place for places in points.values() for place in places):
        if accuracy > best:
            best = accuracy
            front.append((size, accuracy))
    if front:
        axes.step(*zip(*front), where="post", color="0.3", linewidth=4, alpha=0.2, label="front", zorder=0)
    axes.set_xscale("log")
    axes.set_xlabel("bytes of the deltas as fp32 (the head is left out)")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.2)
    if points:
        figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
