"""A run from its config to its report: teacher, controls, student, test, export, verification."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console

from augment.dual import DualAugment
from distill.config import Experiment, dump_config
from distill.data.base import Split
from distill.deltas.inventory import block_of, inventory
from distill.export.checksummed import ExportError
from distill.export.manifest import Result
from distill.files import write_atomic
from distill.models.network import Network
from distill.models.reused_head import enlargement
from distill.models.student import Student
from distill.models.teacher import Teacher
from distill.report.html import write_report
from distill.report.summary import Check, Curves, Machine, Row, RunSummary, SiteBytes, read_curves
from distill.report.terminal import print_summary
from distill.run.context import RunContext, make_data, predict_pooled, predict_student, predict_teacher
from distill.run.export import export_paths, export_student, structural_types, verify_export
from distill.run.folder import FITS, RunFolder, close_run, is_first_rank, open_run
from distill.run.preview import Preview, draw_preview
from distill.run.replay import ViewBatch
from distill.run.stages import distil, labels_only, linear_probe, prepare_teachers
from distill.training.evaluate import Predictions
from distill.training.fit import FitSummary
from distill.training.signals import Interrupted, StopSignal

EXPORT = "export"
RESULTS = "results.json"


@dataclass
class Results:
    """What the stages found, as far as they ran."""

    rows: list[Row] = field(default_factory=list)
    predictions: dict[str, Predictions] = field(default_factory=dict)
    fits: dict[str, FitSummary] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    sites: tuple[SiteBytes, ...] = ()


def run(experiment: Experiment, resume: bool = False, console: Console | None = None) -> Path:
    """Run the experiment; returns the run folder.

    Raises:
        RunError, StageError, DataError, NetworkError, DeltaError: what cannot be used, named.
        Interrupted: a signal arrived; ``resume=True`` goes on from there.
    """
    console = console or Console()
    folder = open_run(experiment, resume)
    try:
        with StopSignal() as stop:
            context = RunContext(experiment, make_data(experiment), console if is_first_rank() else None, stop)
            if context.console is not None:
                context.console.print(opening(context, folder.path), highlight=False, soft_wrap=True)
            _run_stages(context, folder)
        folder.set_status("finished")
    except BaseException as error:
        with suppress(OSError):  # a full disk must not hide what went wrong
            if isinstance(error, Interrupted):
                folder.set_status("interrupted")
                if is_first_rank():
                    console.print(f"{folder.path} is saved; the same command with --resume goes on", soft_wrap=True)
            else:
                folder.fail()
        raise
    finally:
        close_run()
    return folder.path


def opening(context: RunContext, folder: Path) -> str:
    """The first line of a run: where it writes, what it learns from, and on what."""
    images, labels = len(context.data.part("train")), context.data.labeled_count
    labeled = "" if labels == images else f", {labels or 'none'} of them labeled"
    classes = f", {len(context.data.classes)} classes" if context.data.classes else ""
    return f"{folder}: {images} training images{labeled}{classes}; on {context.device.type}"


def _run_stages(context: RunContext, folder: RunFolder) -> None:
    experiment, results = context.experiment, Results()
    split: Split = "test" if context.data.has("test") else "val"
    if split == "val":
        results.warnings.append("the source has no test split: the table is of the validation split")

    teachers: list[Network] = []
    if experiment.teacher is not None:
        with _stage(context, folder, "teacher"):
            teachers = prepare_teachers(context)
            if len(context.teacher_fits) == len(teachers) == 1:
                results.fits["teacher"] = context.teacher_fits[0]

    with _stage(context, folder, "student"):
        student, teacher, results.fits["student"] = distil(context, teachers, folder.path / FITS / "student")

    labeled = context.data.labeled_count
    if experiment.controls.linear_probe and labeled and context.data.has("val"):
        with _stage(context, folder, "linear probe"):
            _probe_row(context, results, split)
    if experiment.controls.labels_only and teacher is not None and labeled:
        with _stage(context, folder, "labels only"):
            _labels_only_row(context, folder, results, split)
    if experiment.controls.linear_probe and "linear probe" not in results.predictions:
        results.warnings.append("no linear probe: it needs labeled training samples, and validation samples")

    with _stage(context, folder, "test"):
        _test_rows(context, results, student, teacher, split)
    if not is_first_rank():
        return
    with _stage(context, folder, "export"):
        measured = _measured(results, experiment.seed, split)
        results.sizes = export_student(context, student, folder.path / EXPORT, measured)
        results.sites = _where(student)
        if structural := structural_types(experiment):
            results.warnings.append(f"no merged folder: {', '.join(structural)} cannot be merged; see export/delta")
    if (larger := enlargement(student.model)) is not None:
        results.warnings.append(str(larger))
    with _stage(context, folder, "verify"):
        results.checks = verify_export(context, folder.path / EXPORT, student)
    results.warnings += [f"unreadable image skipped in training: {reason}" for reason in context.unreadable.values()]
    results.warnings += [
        f"{name}: {fit.spikes} loss spike(s), see log.csv" for name, fit in results.fits.items() if fit.spikes
    ]
    summary = _summary(context, folder, results, _preview(context, folder, student, teacher))
    write_report(folder.path, summary)
    _write_results(folder.path / RESULTS, measured, summary)
    if context.console is not None:
        print_summary(summary, context.console)
    failed = [check.name for check in results.checks if not check.passed]
    if failed:
        raise ExportError(f"{folder.path / EXPORT}: verification failed: {', '.join(failed)}; see report.html")


def _write_results(path: Path, measured: list[Result], summary: RunSummary) -> None:
    """The run's figures for programs: what exports carry, and all that the report shows but curves and config."""
    content = {
        "results": [result.model_dump(mode="json") for result in measured],
        "summary": summary.model_dump(mode="json", exclude={"curves", "config"}),
    }
    write_atomic(path, json.dumps(content, indent=2).encode())


@contextmanager
def _stage(context: RunContext, folder: RunFolder, name: str) -> Iterator[None]:
    context.stop.raise_if_received()
    begun = time.perf_counter()
    if context.console is not None:
        context.console.rule(f"[bold]{name}", align="left", style="dim")
    try:
        yield
    finally:
        folder.finish_stage(name, time.perf_counter() - begun)


# --- Rows of the table --------------------------------------------------------------------------------------------


def _probe_row(context: RunContext, results: Results, split: Split) -> None:
    begun = time.perf_counter()
    probe, network = linear_probe(context)
    seconds = time.perf_counter() - begun
    predictions = probe.predict(predict_pooled(context, network, context.loader(split)))
    results.predictions["linear probe"] = predictions
    trained = probe.weight.numel() + probe.bias.numel()
    results.rows.append(
        Row(
            name="linear probe",
            what=f"frozen backbone, logistic regression on {context.data.labeled_count} labels",
            accuracy=predictions.accuracy(),
            trained=trained,
            bytes=4 * trained,
            seconds=seconds,
        )
    )


def _labels_only_row(context: RunContext, folder: RunFolder, results: Results, split: Split) -> None:
    steps = results.fits["student"].steps
    student, fit = labels_only(context, steps, folder.path / FITS / "labels-only")
    results.fits["labels only"] = fit
    predictions = predict_student(context, student, split)
    results.predictions["labels only"] = predictions
    results.rows.append(
        Row(
            name="labels only",
            what=f"the same student without a teacher, {context.data.labeled_count} labels",
            accuracy=predictions.accuracy(),
            trained=_trained(student),
            bytes=_bytes(student),
            seconds=fit.seconds,
        )
    )


def _test_rows(context: RunContext, results: Results, student: Student, teacher: Teacher | None, split: Split) -> None:
    of_student = predict_student(context, student, split)
    results.predictions["student"] = of_student
    of_teacher = None
    if teacher is not None and teacher.knows(of_student.logits.shape[1]):
        of_teacher = predict_teacher(context, teacher, split)
        results.predictions["teacher"] = of_teacher
        results.rows = [
            row.model_copy(update={"agreement": results.predictions[row.name].agreement(of_teacher)})
            for row in results.rows
        ]
    labels = f"{context.data.labeled_count} labels, " if context.data.labeled_count else ""
    results.rows.append(
        Row(
            name="student",
            what=f"{labels}{len(context.data.part('train'))} images" + (" and the teacher" if teacher else ""),
            accuracy=of_student.accuracy(),
            agreement=of_student.agreement(of_teacher) if of_teacher is not None else None,
            trained=_trained(student),
            bytes=_bytes(student),
            seconds=results.fits["student"].seconds,
        )
    )
    if teacher is not None:
        results.rows.append(
            Row(
                name="teacher",
                what=" + ".join(teacher.origins),
                accuracy=of_teacher.accuracy() if of_teacher is not None else None,
                bytes=sum(4 * parameter.numel() for parameter in teacher.parameters()),
            )
        )


def _with_epochs(row: Row, fits: dict[str, FitSummary]) -> Row:
    """The row with the last and the best epoch of its fit, where ``training.test_every`` had them tested."""
    if row.name not in fits or (best := fits[row.name].best_on_test) is None:
        return row
    epoch, accuracy = best
    last = fits[row.name].test_accuracies[-1]
    return row.model_copy(update={"last_epoch": last, "best_epoch": accuracy, "best_at": epoch + 1})


def _where(student: Student) -> tuple[SiteBytes, ...]:
    """What every delta of the student takes."""
    return tuple(
        SiteBytes(
            site=one.site,
            block=block_of(one.site),
            type=one.type,
            rank=one.rank,
            bytes=one.bytes,
            layer_bytes=one.layer_bytes,
        )
        for one in inventory(student.model)
    )


def _trained(student: Student) -> int:
    return sum(p.numel() for p in student.parameters() if p.requires_grad)


def _bytes(student: Student) -> int:
    return sum(t.numel() * t.element_size() for t in student.own_state().values())


def _measured(results: Results, seed: int, split: Split) -> list[Result]:
    """The student's figures, as exports carry them."""
    row = next(row for row in results.rows if row.name == "student")
    found = {f"{split} accuracy": row.accuracy, f"{split} agreement with the teacher": row.agreement}
    return [Result(name=name, value=value, seed=seed) for name, value in found.items() if value is not None]


def _summary(context: RunContext, folder: RunFolder, results: Results, preview: Preview) -> RunSummary:
    experiment = context.experiment
    labels = next(iter(results.predictions.values())).labels
    curves: dict[str, Curves] = {}
    for name in ("student", "labels-only"):
        log = folder.path / FITS / name / "log.csv"
        if log.is_file():
            curves[name.replace("-", " ")] = read_curves(log)
    paths = {
        "report": folder.path / "report.html",
        "views": folder.path / "views.png",
        "operations": folder.path / "views-operations.png",
        "config": folder.path / "config.yaml",
        "logs": folder.path / FITS,
        **{name: path for name, path in export_paths(folder.path / EXPORT).items() if path.is_dir()},
    }
    order = ["linear probe", "labels only", "student", "teacher"]
    return RunSummary(
        title=folder.path.name,
        seed=experiment.seed,
        machine=Machine.here(),
        config=dump_config(experiment),
        finished=datetime.now().isoformat(" ", "minutes"),
        rows=tuple(_with_epochs(row, results.fits) for row in sorted(results.rows, key=lambda r: order.index(r.name))),
        sizes=results.sizes,
        sites=results.sites,
        seconds=folder.record["stages"],
        paths={name: str(path) for name, path in paths.items()},
        curves=curves,
        contact_sheet=folder.path / "views.png",
        operations_sheet=folder.path / "views-operations.png",
        shared=preview.shared,
        classes=tuple(context.data.classes),
        labels=labels if context.data.classes else (),
        predictions={name: p.classes for name, p in results.predictions.items()} if context.data.classes else {},
        verification=tuple(results.checks),
        warnings=tuple(results.warnings),
    )


def _preview(context: RunContext, folder: RunFolder, student: Student, teacher: Teacher | None) -> Preview:
    """Write the pictures of what each network saw in its first step."""
    experiment = context.experiment
    augment = DualAugment(experiment.augment, teacher.inputs if teacher else (), student.input, experiment.seed)
    preview = draw_preview(context.data, ViewBatch.of(augment, context.data.batch_at(0, 0), 0), 8)
    preview.write(folder.path / "views.png")
    return preview
