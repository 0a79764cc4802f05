"""Do two views help? Objectives times view policies, on 61 kinds of flowers: a table of test accuracies.

    python benchmarks/objective_accuracy.py DATA [--cells NAMES] [--seeds 0,1] [--epochs 4] [--size 96] [--out FOLDER]

DATA is a folder with ``train*.parquet`` and ``test*.parquet``. The teacher is an EfficientNet-Lite2 with ImageNet
weights, fine-tuned once, on the same labels; the student an EfficientNet-Lite0, frozen, with 200 KB of low-rank deltas
(equal ranks). A fifth of train is held out, and nothing is chosen on it here: learning rates are those of
``configs/flowers``, weights those of the papers, except that labels and KD or DKD have weight 0.5 each. ``icd`` has
weight 0.5.

Cells: ``OBJECTIVE/POLICY``, and ``labels only`` without a teacher. Policies: one view for both networks
(``identical``), the same crop and flip with colors drawn for each (``shared_geometry``), a view for each
(``independent``), a view for each, mild for the teacher (``weak_teacher``).

Every cell is tested after its last epoch, once: accuracy, agreement with the teacher, and accuracy under each of
``CORRUPTIONS``, drawn by image and equal for all cells. A finished cell is a line of ``results.jsonl`` in ``--out``; a
second start measures what is missing. ``--markdown FILE`` writes the table.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import measure  # noqa: F401  # this folder's augment.py must not hide the package
import torch
from accuracy import STUDENT, VIEW, Notebook, data_of, fit_teacher, percent, tell, train_student, training
from rich.console import Console

from augment.chain import Chain
from augment.draws import Draws
from augment.recipe import Op
from distill.data.reader import Batch
from distill.experiments.distillation import DistillationExperiment
from distill.models.student import Student
from distill.run.context import RunContext
from distill.run.predict import logits_of, predict_student, predict_teacher
from distill.run.teacher import make_teacher
from distill.stages.outputs import TeacherNetworks
from distill.training.evaluate import Predictions
from distill.training.signals import StopSignal

LABELS: dict[str, Any] = {"type": "ce", "weight": 0.5}
KD: dict[str, Any] = {"type": "kd", "weight": 0.5, "temperature": 4}
ICD: dict[str, Any] = {"type": "icd", "weight": 0.5}
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "kd": [LABELS, KD],
    "dkd": [LABELS, {"type": "dkd", "weight": 0.5, "temperature": 4}],
    "icd": [LABELS, ICD],
    "icd+kd": [LABELS, KD, ICD],
}
MILD: list[Any] = [{"type": "RandomResizedCrop", "scale": [0.6, 1.0]}, "RandomHorizontalFlip"]
POLICIES: dict[str, dict[str, Any]] = {
    "identical": {},
    "shared_geometry": {"teacher": None},
    "independent": {},
    "weak_teacher": {"teacher": MILD},
}
ALONE = "labels only"
CORRUPTIONS: dict[str, Op] = {
    "rotation": Op.of("RandomRotation", degrees=30.0, p=1.0),
    "blur": Op.of("RandomGaussianBlur", kernel_size=7, sigma=[1.5, 1.5], p=1.0),
    "color": Op.of("ColorJitter", brightness=0.4, contrast=0.4, saturation=0.6, hue=0.1, p=1.0),
    "noise": Op.of("GaussianNoise", std=0.1, p=1.0),
}


def experiment(given: argparse.Namespace, seed: int, cell: str = ALONE) -> DistillationExperiment:
    objective, _, policy = cell.partition("/")
    alone = cell == ALONE
    return DistillationExperiment.model_validate(
        {
            "name": "objective-accuracy",
            "output": str(given.out),
            "seed": seed,
            "data": data_of(given.data, given.out / "cache", given.size, given.workers),
            "augment": {"policy": policy or "identical", "student": list(VIEW), **POLICIES.get(policy, {})},
            "teacher": None
            if alone
            else {"networks": [{"model": "embedded:tf_efficientnet_lite2", "size": given.size}], "dtype": "float32"},
            "fit_teacher": None if alone else {"training": training(given.teacher_epochs, 5e-4)},
            "student": {
                "network": {"model": STUDENT, "size": given.size},
                "deltas": [{"type": "low_rank", "ranks": {"budget": "200KB", "importance": "uniform"}}],
            },
            "objectives": [{"type": "ce"}] if alone else OBJECTIVES[objective],
            "training": training(given.epochs, 2e-3),
        }
    )


def corrupted(batches: Iterable[Batch], kind: str) -> Iterator[Batch]:
    """The batches with one corruption on every image, drawn by its id."""
    chain: Chain | None = None
    for batch in batches:
        size = (batch.images.shape[-2], batch.images.shape[-1])
        chain = chain or Chain([CORRUPTIONS[kind]], size)
        pixels = chain(batch.images, Draws(0, 0, "corruption", batch.ids))
        yield batch._replace(images=pixels.mul(255).round_().to(torch.uint8))


def test(context: RunContext, student: Student, teacher: Predictions | None) -> dict[str, Any]:
    """The accuracies of one student that the table shows."""
    clean = predict_student(context, student, "test")
    result: dict[str, Any] = {"test": clean.accuracy(), "held_out": predict_student(context, student, "val").accuracy()}
    if teacher is not None:
        result["agreement"] = clean.agreement(teacher)
    for kind in CORRUPTIONS:
        seen = corrupted(context.loader("test", student.input), kind)
        result[kind] = context.predict(student, lambda view: logits_of(student(view)), student.input, seen).accuracy()
    return result


class Lab:
    """The experiments, and the teacher, fitted when it is first needed."""

    def __init__(self, given: argparse.Namespace, stop: StopSignal):
        self.given, self.stop = given, stop
        self._teacher: tuple[TeacherNetworks, Predictions] | None = None
        self.teacher_accuracy: dict[str, Any] = {}

    def teacher(self) -> tuple[TeacherNetworks, Predictions]:
        """One teacher for every seed of the student, and its predictions on the test split."""
        if self._teacher is None:
            made = experiment(self.given, 0, "kd/identical")
            context = RunContext.of(made, self.stop)
            teacher = fit_teacher(made, context)
            assert made.teacher is not None
            networks = make_teacher(made.teacher, made.objectives, teacher.networks)
            self._teacher = teacher, predict_teacher(context, networks, "test")
        return self._teacher

    def measure(self, cell: str, seed: int) -> dict[str, Any]:
        made = experiment(self.given, seed, cell)
        teacher, predictions = (None, None) if cell == ALONE else self.teacher()
        begun, context = time.perf_counter(), RunContext.of(made, self.stop)
        if teacher is not None:
            context.outputs["teacher"] = teacher
        name = f"{cell.replace('/', ' ')} seed {seed}"
        student = train_student(made, context, self.given.out / "fits" / name).student
        seconds = time.perf_counter() - begun
        return {"cell": cell, "seed": seed, "seconds": seconds, **test(context, student, predictions)}


def main() -> None:
    cells = [ALONE, *(f"{objective}/{policy}" for policy in POLICIES for objective in OBJECTIVES)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with train*.parquet and test*.parquet")
    parser.add_argument("--cells", help=f"comma-separated names or beginnings of names of {', '.join(cells)}")
    parser.add_argument("--seeds", default="0,1", help="comma-separated")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/objective-accuracy"))
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    given = parser.parse_args()
    wanted = [cell for cell in cells if not given.cells or cell.startswith(tuple(given.cells.split(",")))]
    console = Console()
    logging.getLogger("distill").setLevel(logging.ERROR)
    options = {"epochs": given.epochs, "teacher_epochs": given.teacher_epochs, "size": given.size}
    book = Notebook(given.out, options)
    with StopSignal() as stop:
        lab = Lab(given, stop)
        for seed in [int(seed) for seed in given.seeds.split(",")]:
            done = {line["cell"] for line in book.with_key("cell") if line["seed"] == seed}
            for cell in wanted:
                if cell in done:
                    continue
                stop.raise_if_received()
                if cell != ALONE and not book.with_key("teacher"):
                    accuracy = lab.teacher()[1].accuracy()
                    book.add({"teacher": accuracy})
                    console.print(f"teacher: {accuracy:.1%} on test", highlight=False)
                result = lab.measure(cell, seed)
                book.add(result)
                console.print(f"seed {seed} {cell}: {result['test']:.1%}, {result['seconds']:.0f} s", highlight=False)
    report(book, console, given.markdown)


def report(book: Notebook, console: Console, markdown: Path | None) -> None:
    columns = ["test", "agreement", *CORRUPTIONS, "held_out"]
    lines, rows = book.with_key("cell"), []
    for cell in dict.fromkeys(line["cell"] for line in lines):
        result = [line for line in lines if line["cell"] == cell]
        cells = [percent([line[key] for line in result]) if key in result[0] else "–" for key in columns]
        rows.append([cell, *cells, str(len(result))])
    tell(console, ["cell", *(column.replace("_", " ") for column in columns), "seeds"], rows, markdown)
    for line in book.with_key("teacher"):
        console.print(f"teacher: {line['teacher']:.1%} on test", highlight=False)


if __name__ == "__main__":
    main()
