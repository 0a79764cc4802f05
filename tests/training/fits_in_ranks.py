"""Fits in as many ranks as ``training.devices`` says, each in a folder. See its test."""

import sys
import warnings
from pathlib import Path

import torch
from spare_rank import with_spare_rank
from toy_training import (
    FITS_IN_RANKS,
    PREPARED_IN_RANKS,
    Made,
    all_views,
    experiment,
    noting_views,
    probe_fit,
    student_fit,
)

from distill.run.context import RunContext
from distill.run.export import export_student
from distill.run.folder import local_rank
from distill.run.predict import predict_student
from distill.training.signals import StopSignal


def in_ranks(output: Path) -> None:
    for name, changes in FITS_IN_RANKS.items():
        settings = experiment(output, **{**changes, "training": {**changes.get("training", {}), "devices": 2}})
        made: list[Made] = []
        with noting_views(made):
            student = student_fit(settings, output / name).student
        assert student is not None
        torch.save(
            [(epoch, ids, all_views(views)) for epoch, ids, views in made], output / name / f"views-{local_rank()}"
        )
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        predictions = predict_student(context, student, "val")
        probe = probe_fit(settings, context, output / "probe").probe
    if local_rank() == 0:
        torch.save([predictions.ids, predictions.labels, predictions.logits, probe.weight], output / "predictions.pt")


def prepared_in_ranks(output: Path) -> None:
    for name, deltas in PREPARED_IN_RANKS.items():
        settings = experiment(output, student={"deltas": deltas}, training={"devices": 2, "epochs": 1})
        student = student_fit(settings, output / name).student
        assert student is not None
        torch.save(student.own_state(), output / name / f"student-{local_rank()}")
        if local_rank() == 0:
            with StopSignal() as stop:
                context = RunContext.of(settings, stop)
                export_student(context, settings.export, student, output / name / "export", [])


def run(arguments: list[str]) -> None:
    [output] = map(Path, arguments)
    warnings.simplefilter("error")
    in_ranks(output)
    prepared_in_ranks(output)


def forked(output: str) -> None:
    """``run`` as the first rank, in a child of a process that has imported everything; the second is its child."""
    # What Lightning starts further ranks with.
    sys.argv = [__file__, output]
    sys.modules["__main__"].__spec__ = None
    with_spare_rank(run)
    run([output])
