"""What the command line does besides training: each works on a config or on a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from distill.config import Experiment
from distill.data.base import Split
from distill.export.delta_file import load_delta, read_delta
from distill.export.manifest import Result
from distill.export.sealed import ExportError
from distill.export.timm_folder import check_timm_folder
from distill.exporting import export_paths, export_student, structural_types, verify_export
from distill.files import write_atomic
from distill.models.network import NetworkSettings, create_network
from distill.run import EXPORT, FITS, RESULTS, views_sheet
from distill.run_folder import read_run
from distill.stages import trained_student
from distill.training.evaluate import Predictions
from distill.training.signals import StopSignal
from distill.workshop import Workshop, make_data


@contextmanager
def _workshop(experiment: Experiment, console: Console | None = None) -> Iterator[Workshop]:
    with StopSignal() as stop:
        yield Workshop(experiment, make_data(experiment), console, stop)


def preview_views(experiment: Experiment, to: Path, images: int, epoch: int) -> None:
    """Write the contact sheet of an experiment without running it."""
    with _workshop(experiment) as shop:
        student = create_network(experiment.student.network).input
        teachers = [create_network(n).input for n in experiment.teacher.networks] if experiment.teacher else []
        write_atomic(to, views_sheet(shop, student, teachers, images, epoch))


def evaluate_run(path: Path, split: Split, console: Console) -> Predictions:
    """Accuracy of a run's student as exported: backbone and delta file, or the merged folder of one trained whole."""
    experiment, _ = read_run(path)
    paths = export_paths(path / EXPORT)
    with _workshop(experiment, console) as shop:
        if experiment.student.train == "whole":
            check_timm_folder(paths["merged model"])
            network = create_network(NetworkSettings(model=f"local-dir:{paths['merged model']}"))
        else:
            classes = read_delta(paths["delta"])[0].num_classes
            torch.manual_seed(experiment.seed)
            network = create_network(experiment.student.network, classes)
            network = replace(network, model=load_delta(paths["delta"], network.model))
        predictions = shop.predict(network.model, network.model, network.input, shop.loader(split))
    accuracy = predictions.accuracy()
    said = "no labels to compare with" if accuracy is None else f"accuracy {accuracy:.2%}"
    console.print(f"{path.name}: {said} on {len(predictions.ids)} images of {split}", highlight=False)
    return predictions


def export_run(path: Path, to: Path | None, console: Console) -> None:
    """Write a finished run's exports again, from its trained weights."""
    experiment, _ = read_run(path)
    with _workshop(experiment, console) as shop:
        student = trained_student(shop, path / FITS / "student")
        results = [Result.model_validate(result) for result in json.loads((path / RESULTS).read_text())["results"]]
        folder = to or path / EXPORT
        for name, size in export_student(shop, student, folder, results).items():
            console.print(f"{name}: {size:,} bytes", highlight=False)
        console.print(f"wrote {folder}", highlight=False)


def verify_run(path: Path, console: Console) -> None:
    """Prove a run's export; raises ``ExportError`` if the proof fails."""
    experiment, _ = read_run(path)
    with _workshop(experiment, console) as shop:
        structural = bool(structural_types(experiment))
        student = trained_student(shop, path / FITS / "student") if structural else None
        checks = verify_export(shop, path / EXPORT, student)
    for check in checks:
        console.print(
            f"[{'green' if check.passed else 'red'}]{'✓' if check.passed else '✗'}[/] {check.name}: {check.detail}"
        )
    if not all(check.passed for check in checks):
        raise ExportError(f"{path / EXPORT}: the export is not the model that was trained")
