"""What the command line does besides training: each works on a config or on a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from distill.commands.score import candidates, score, score_table, write_scores
from distill.config import ConfigError, Experiment
from distill.data.base import Split
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta
from distill.export.manifest import Result
from distill.export.targets.timm_folder import check_timm_folder
from distill.models.network import NetworkSettings, create_network
from distill.models.teacher import DTYPES, Teacher
from distill.run.context import RunContext, make_data
from distill.run.export import export_paths, export_student, structural_types, verify_export
from distill.run.folder import read_run
from distill.run.preview import draw_preview
from distill.run.replay import ViewBatch, augment_of, batch_of_step, data_of
from distill.run.run import EXPORT, FITS, RESULTS
from distill.run.stages import label_maps, ready_teachers, trained_student
from distill.training.evaluate import Predictions
from distill.training.fit import device_for
from distill.training.signals import StopSignal


@contextmanager
def _workshop(experiment: Experiment, console: Console | None = None) -> Iterator[RunContext]:
    with StopSignal() as stop:
        yield RunContext(experiment, make_data(experiment), console, stop)


def preview_views(
    experiment: Experiment,
    to: Path,
    console: Console,
    *,
    images: int,
    epoch: int | None = None,
    step: int | None = None,
    ids: Sequence[str] = (),
) -> None:
    """Write the pictures of an experiment's views without running it: of a step, of some ids, or of an epoch's start.

    Raises:
        ConfigError: a step and an epoch or ids are given: each says which batch.
    """
    if step is not None and (ids or epoch is not None):
        raise ConfigError("--step says which epoch and samples; leave out --epoch and --ids")
    data, at = data_of(experiment), epoch or 0
    if step is not None:
        at, batch = batch_of_step(experiment, step)
    else:
        batch = data.batch_of(ids, at) if ids else data.batch_at(at, 0)
    view_batch = ViewBatch.of(augment_of(experiment), batch, at, device_for(experiment.training))
    preview = draw_preview(data, view_batch, len(ids) or images)
    if preview.shared:
        console.print(f"teacher and student: {preview.shared}", highlight=False, soft_wrap=True)
    _say_written(preview.write(to), console)


def score_views(experiment: Experiment, to: Path, console: Console, *, seeds: int, draws: int, images: int) -> None:
    """Rank pipelines by T-stddev under the experiment's teacher; trains nothing."""
    with _workshop(experiment, console) as context:
        networks = ready_teachers(context)
        assert experiment.teacher is not None
        weights = [network.weight for network in experiment.teacher.networks]
        maps = label_maps(context, networks)
        teacher = Teacher(networks, weights, dtype=DTYPES[experiment.teacher.dtype], maps=maps)
        asked = {"seed": experiment.seed, "seeds": seeds, "draws": draws, "images": images}
        pipelines = candidates(experiment.augment)
        scores = score(pipelines, context.data, teacher, device=context.device, console=console, **asked)
    console.print(score_table(scores, draws, images))
    origins = [network.origin for network in networks]
    _say_written(write_scores(scores, to.with_suffix(""), **asked, teacher=origins), console)


def _say_written(paths: Sequence[Path], console: Console) -> None:
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def evaluate_run(path: Path, split: Split, console: Console) -> Predictions:
    """Accuracy of a run's student as exported: backbone and delta file, or the merged folder of one trained whole."""
    experiment, _ = read_run(path)
    paths = export_paths(path / EXPORT)
    with _workshop(experiment, console) as context:
        if experiment.student.train == "full":
            check_timm_folder(paths["merged model"])
            network = create_network(NetworkSettings(model=f"local-dir:{paths['merged model']}"))
        else:
            classes = read_delta(paths["delta"])[0].num_classes
            torch.manual_seed(experiment.seed)
            network = create_network(experiment.student.network, classes)
            network = replace(network, model=load_delta(paths["delta"], network.model))
        predictions = context.predict(network.model, network.model, network.input, context.loader(split))
    accuracy = predictions.accuracy()
    said = "no labels to compare with" if accuracy is None else f"accuracy {accuracy:.2%}"
    console.print(f"{path.name}: {said} on {len(predictions.ids)} images of {split}", highlight=False)
    return predictions


def export_run(path: Path, to: Path | None, console: Console) -> None:
    """Write a finished run's exports again, from its trained weights."""
    experiment, _ = read_run(path)
    with _workshop(experiment, console) as context:
        student = trained_student(context, path / FITS / "student")
        results = [Result.model_validate(result) for result in json.loads((path / RESULTS).read_text())["results"]]
        folder = to or path / EXPORT
        for name, size in export_student(context, student, folder, results).items():
            console.print(f"{name}: {size:,} bytes", highlight=False)
        console.print(f"wrote {folder}", highlight=False)


def verify_run(path: Path, console: Console) -> None:
    """Prove a run's export; raises ``ExportError`` if the proof fails."""
    experiment, _ = read_run(path)
    with _workshop(experiment, console) as context:
        # Where only one thing was exported, it is compared with the student that was trained.
        alone = bool(structural_types(experiment)) or experiment.student.train == "full"
        student = trained_student(context, path / FITS / "student") if alone else None
        checks = verify_export(context, path / EXPORT, student)
    for check in checks:
        console.print(
            f"[{'green' if check.passed else 'red'}]{'✓' if check.passed else '✗'}[/] {check.name}: {check.detail}"
        )
    if not all(check.passed for check in checks):
        raise ExportError(f"{path / EXPORT}: the export is not the model that was trained")
