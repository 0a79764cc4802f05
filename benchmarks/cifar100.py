"""The CIFAR-100 recipes beside the published figures: last epoch and best epoch apart.

    python benchmarks/cifar100.py [KEY=VALUE ...] [--cells NAMES] [--seeds 0] [--out FOLDER] [--markdown FILE] [--list]

Runs ``configs/cifar100/CELL.yaml`` for two pairs of networks, the teacher first. ``KEY=VALUE`` changes every recipe as
it does for ``train.py``, such as ``'data.source={type: huggingface, name: FOLDER}'``. It needs a GPU; ``--list`` trains
nothing, and shows the results so far. Every finished cell is a line of ``results.jsonl`` in ``--out``, and a stopped
cell continues from its newest checkpoint, so a second start with the same options measures what is missing.

**Last** is the accuracy after the last epoch. **Best** is the highest of all epochs on the test split; it is selected
on the test split and therefore too high, and is shown because papers often print it. Nothing is trained or kept by it.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
from accuracy import Notebook, fit_teacher, tell, train_student
from rich.console import Console

from distill.config import load_config
from distill.experiments.distillation import DistillationExperiment, as_distillation
from distill.files import write_atomic
from distill.report.summary import Machine
from distill.run.context import RunContext
from distill.training.signals import StopSignal

RECIPES = Path(__file__).parents[1] / "configs" / "cifar100"
PAIRS = {"resnet56 → resnet20": ("resnet56", "resnet20"), "resnet32x4 → resnet8x4": ("resnet32x4", "resnet8x4")}
CELLS = {
    "teacher": "the teacher",
    "scratch": "labels alone",
    "kd": "KD",
    "dkd": "DKD",
    "icd": "ICD, identical views",
    "icd_dual": "ICD, dual views",
    "icd_kd": "ICD+KD, identical views",
    "icd_kd_dual": "ICD+KD, dual views",
}
"""Recipe → its name in the table. The teacher's own training is part of every recipe that has one."""

SOURCES = {
    "CRD": "README of HobbitLong/RepDistiller, the code of CRD (arXiv 1910.10699), first table",
    "DKD": "README of megvii-research/mdistiller, the code of DKD (arXiv 2203.08679), first table on CIFAR-100",
}
PUBLISHED = {
    ("resnet56 → resnet20", "teacher"): (72.34, "CRD"),
    ("resnet56 → resnet20", "scratch"): (69.06, "CRD"),
    ("resnet56 → resnet20", "kd"): (70.66, "CRD"),
    ("resnet56 → resnet20", "dkd"): (71.97, "DKD"),
    ("resnet32x4 → resnet8x4", "teacher"): (79.42, "CRD"),
    ("resnet32x4 → resnet8x4", "scratch"): (72.50, "CRD"),
    ("resnet32x4 → resnet8x4", "kd"): (73.33, "CRD"),
    ("resnet32x4 → resnet8x4", "dkd"): (76.32, "DKD"),
}
NOTES = """\
Accuracy on the 10,000 test images, in percent. *Last*: after the last epoch. *Best*: the highest of all epochs, picked
by its test accuracy and so too high; nothing was trained or kept by it. *Published*: as printed there, without saying
of which epoch; – where no figure for the pair was found in a source that could be opened. The papers of ICD (arXiv
2407.11802) and of its dual views (arXiv 2410.09474) have results on CIFAR-100, but their tables could not be opened.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to every recipe")
    parser.add_argument("--cells", help=f"comma-separated, of {', '.join(CELLS)}; default: all")
    parser.add_argument("--pairs", help="comma-separated students, of resnet20, resnet8x4; default: both")
    parser.add_argument("--seeds", default="0", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar100"))
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    parser.add_argument("--list", action="store_true", help="train nothing")
    given = parser.parse_args()
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    book = Notebook(given.out, {"overrides": given.overrides})
    if not given.list:
        with StopSignal() as stop:
            for seed in [int(seed) for seed in given.seeds.split(",")]:
                for pair, (_, student) in PAIRS.items():
                    if given.pairs is None or student in given.pairs.split(","):
                        fill(book, given, pair, seed, stop, console)
    report(book, given.overrides, console, given.markdown)


def fill(book: Notebook, given: argparse.Namespace, pair: str, seed: int, stop: StopSignal, console: Console) -> None:
    """Measure the requested cells of a pair and seed that have no result yet."""
    done = {line["cell"] for line in book.with_key("cell") if (line["pair"], line["seed"]) == (pair, seed)}
    for cell in given.cells.split(",") if given.cells else CELLS:
        if cell not in CELLS:
            raise SystemExit(f"there is no cell {cell!r}, only {', '.join(CELLS)}")
        if cell not in done:
            stop.raise_if_received()
            result = measured(experiment(pair, cell, seed, given), pair, cell, given.out, stop, console)
            book.add({"pair": pair, "cell": cell, "seed": seed, **result})
            console.print(
                f"seed {seed} {pair} {cell}: last {result['last']:.2%}, best {result['best']:.2%}", highlight=False
            )


def experiment(pair: str, cell: str, seed: int, given: argparse.Namespace) -> DistillationExperiment:
    teacher, student = PAIRS[pair]
    changes = [f"seed={seed}", f"output={given.out}", f"student.network.model={student}_cifar"]
    if cell != "scratch":
        changes.append(f"teacher.networks.0.model={teacher}_cifar")
    if cell == "dkd" and student == "resnet8x4":
        changes.append("objectives.1.beta=8")  # as in its paper for this pair
    recipe = "kd" if cell == "teacher" else cell
    path = RECIPES / f"{recipe}.yaml"
    return as_distillation(load_config(path, [*changes, *given.overrides]), str(path))


def measured(
    made: DistillationExperiment, pair: str, cell: str, out: Path, stop: StopSignal, console: Console
) -> dict[str, float | int]:
    """Last and best accuracy of a cell's training, the epoch of the best (counted from 1), and seconds."""
    begun = time.perf_counter()
    context = RunContext.of(made, stop, console)
    teacher = fit_teacher(made, context)
    if cell == "teacher":
        (fit,) = teacher.fits
    else:
        folder = out / "fits" / f"{pair.replace(' → ', ' to ')} {cell} seed {made.seed}"
        fit = train_student(made, context, folder).fit
    if fit.best_on_test is None:
        raise SystemExit("training.test_every is off: there is no accuracy by epoch to report")
    epoch, best = fit.best_on_test
    seconds = time.perf_counter() - begun
    return {"last": fit.test_accuracies[-1], "best": best, "best_at": epoch + 1, "seconds": seconds}


def report(book: Notebook, overrides: list[str], console: Console, markdown: Path | None) -> None:
    headings, rows = ["pair", "what", "last", "best (chosen on test)", "published", "source"], []
    for pair in PAIRS:
        for cell, what in CELLS.items():
            lines = [line for line in book.with_key("cell") if (line["pair"], line["cell"]) == (pair, cell)]
            value, source = PUBLISHED.get((pair, cell), (None, "–"))
            scores = [percents([line[key] for line in lines]) for key in ("last", "best")]
            rows.append([pair, what, *scores, "–" if value is None else f"{value:.2f}", source])
    tell(console, headings, rows, None)
    if markdown is not None:
        write_atomic(markdown, text(headings, rows, book, overrides).encode())


def percents(accuracies: list[float]) -> str:
    """Mean, with the standard deviation over several seeds; empty if nothing is measured."""
    if not accuracies:
        return ""
    spread = f" ± {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return f"{100 * mean(accuracies):.2f}{spread}"


def text(headings: list[str], rows: list[list[str]], book: Notebook, overrides: list[str]) -> str:
    lines: list[dict[str, Any]] = book.with_key("cell")
    table = [headings, ["---", "---", "---:", "---:", "---:", "---"], *rows]
    where = Machine.here()
    if lines:
        seeds = ", ".join(str(seed) for seed in sorted({line["seed"] for line in lines}))
        what = f"Measured: seeds {seeds}, on {where.gpu or where.cpu}, torch {where.torch}."
    else:
        what = "**Nothing is measured yet**: the columns *last* and *best* are empty until this has run on a GPU."
    changed = f" Recipes changed by `{' '.join(overrides)}`." if overrides else ""
    return (
        "# CIFAR-100, against the published figures\n\n"
        "`python benchmarks/cifar100.py --markdown benchmarks/results/cifar100.md`, recipes in `configs/cifar100`.\n\n"
        + "".join(f"| {' | '.join(cells)} |\n" for cells in table)
        + f"\n{what}{changed}\n\n{NOTES}\nSources: "
        + "; ".join(f"{name}: {source}" for name, source in SOURCES.items())
        + ".\n"
    )


if __name__ == "__main__":
    main()
