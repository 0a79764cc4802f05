"""``distill preview`` and ``distill export``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from augment.console import shown_path
from distill.commands.export_formats import named_targets, only
from distill.commands.exported import print_checks
from distill.commands.score import candidates, score, score_table, write_scores
from distill.config import read_run
from distill.experiments.distillation import DistillationExperiment
from distill.experiments.student import as_exporting
from distill.export.checksummed import ExportError
from distill.export.classes import write_classes_again
from distill.export.delta.source_moments import read_source_moments, write_source_moments
from distill.export.manifest import Result
from distill.export.settings import DELTA
from distill.export.targets.base import require
from distill.models.teacher import DTYPES, Teacher
from distill.past_views import augment_of, data_of, numbers_of_step
from distill.run.context import RunContext, open_context
from distill.run.export import EXPORT, export_student, verify_export
from distill.run.folder import RunError, check_finished
from distill.run.preview import ViewBatch, draw_preview, update_views
from distill.run.runner import load_finished
from distill.run.stage import StageError
from distill.run.teacher import label_maps, text_store
from distill.run.trial import trying
from distill.stages.fit_teacher import FitTeacher
from distill.stages.outputs import TeacherNetworks
from distill.stages.report import RESULTS
from distill.training.device import device_for
from distill.yaml_tree import ConfigError


def preview_views(
    experiment: DistillationExperiment,
    to: Path,
    console: Console,
    *,
    images: int,
    epoch: int | None = None,
    step: int | None = None,
    ids: Sequence[str] = (),
) -> None:
    """Write the pictures of an experiment's views without running it: of a step, of some ids, or of an epoch's start.

    Args:
        experiment: its data and augmentation are used.
        to: ``NAME.png``, the picture of the views; that of the operations is ``NAME-operations.png``.
        console: shows the overlap of the views, and the paths of the written files.
        images: how many images to show, if no ids are given.
        epoch: number of the epoch; None: 0.
        step: number of a training step, which gives epoch and samples; None: by ``epoch`` and ``ids``.
        ids: stable names of the samples to show; empty: the first update of the epoch.

    Raises:
        ConfigError: a step is given together with an epoch or ids.
    """
    if step is not None and (ids or epoch is not None):
        raise ConfigError("--step says which epoch and samples; leave out --epoch and --ids")
    data, at = data_of(experiment), epoch or 0
    numbers = range(min(experiment.training.accumulate, len(data.train_loader())))
    if step is not None:
        at, numbers = numbers_of_step(experiment, data, step)
    device = device_for(experiment.training)
    with trying("drawing the views"):
        if ids:
            view_batches = [ViewBatch.of(augment_of(experiment), data.batch_of_ids(ids, at), at, device)]
            preview = draw_preview(data, view_batches, len(ids))
        else:
            view_batches = update_views(data, augment_of(experiment), at, numbers, images, device)
            preview = draw_preview(data, view_batches, images, len(numbers))
            if len(numbers) > 1:
                of_update = f"batches of one update: {len(numbers)}, of which the picture shows {len(view_batches)}"
                console.print(f"{of_update}; training.accumulate averages their gradients", soft_wrap=True)
    if preview.shared:
        console.print(f"teacher and student: {preview.shared}", highlight=False, soft_wrap=True)
    _print_written(preview.write(to), console)


def score_views(
    experiment: DistillationExperiment, to: Path, console: Console, *, seeds: int, draws: int, images: int
) -> None:
    """Rank pipelines by T-stddev under the experiment's teacher, and write the scores; trains nothing.

    Args:
        experiment: a config with a teacher.
        to: ``NAME.png``; the files are ``NAME-score.csv`` and ``NAME-score.json``.
        console: shows progress and the table.
        seeds: number of seeds.
        draws: draws per seed.
        images: training images per draw.

    Raises:
        StageError: the config has no teacher, or its teacher is not fitted yet.
    """
    if experiment.teacher is None or not experiment.teacher.frozen:
        raise StageError("there is no teacher in this config; add teacher.networks")
    with open_context(experiment, console) as context:
        networks = ready_teacher(experiment, context).networks
        weights = [network.weight for network in experiment.teacher.frozen]
        maps = label_maps(experiment.teacher, networks, context.data.classes, text_store(context))
        teacher = Teacher(list(networks), weights, dtype=DTYPES[experiment.teacher.dtype], maps=maps)
        options = {"seed": experiment.seed, "seeds": seeds, "draws": draws, "images": images}
        with trying("scoring the pipelines"):
            pipelines = candidates(experiment.augment)
            scores = score(pipelines, context.data, teacher, device=context.device, console=console, **options)
    console.print(score_table(scores, draws, images))
    origins = [network.origin for network in networks]
    _print_written(write_scores(scores, to.with_suffix(""), **options, teacher=origins), console)


def ready_teacher(experiment: DistillationExperiment, context: RunContext) -> TeacherNetworks:
    """The teacher's networks as a run would use them, if that takes no training.

    Args:
        experiment: its config.
        context: the experiment's, opened.

    Returns:
        All networks together.

    Raises:
        StageError: ``fit_teacher`` would have to train one first.
    """
    stages = experiment.plan_teacher()
    if experiment.fit_teacher is None:
        outputs = [stage.run(context, context.root) for stage in stages]
        return TeacherNetworks(tuple(network for output in outputs for network in output.networks))
    for stage in load_finished(stages, context):
        assert isinstance(stage, FitTeacher)
        store = stage.store(context, context.digests[stage.name][:16])
        raise StageError(
            f"the teacher {stage.network.model} is not fitted yet, and this command trains nothing: run the config "
            f"first (distill train), with the same seed, data and fit_teacher; looked for in {store}"
        )
    outputs = [context.get(stage.output) for stage in stages]
    return TeacherNetworks(tuple(network for output in outputs for network in output.networks))


def _print_written(paths: Sequence[Path], console: Console) -> None:
    for path in paths:
        console.print(f"wrote {path}", soft_wrap=True)


def export_run(path: Path, to: Path | None, console: Console, formats: str | None = None) -> None:
    """Write a finished run's exports again, from its trained weights.

    Args:
        path: the run folder.
        to: where to write; None: where the run has them.
        console: shows what was written.
        formats: types of export targets, with commas, which are verified; None: those of the run's config.
    """
    experiment = as_exporting(read_run(path)[0], str(path))
    check_finished(path, path / experiment.trained, path / RESULTS)
    export = experiment.export if formats is None else only(named_targets(formats), experiment.export)
    require(export.make_targets())
    with open_context(experiment, console) as context:
        student = experiment.load_student(context, path)
        results = [Result.model_validate(result) for result in _results(path)]
        folder = to or path / EXPORT
        within = replace(context, data=experiment.evaluated(context.data))
        classes = within.data.classes
        moments = read_source_moments(path / EXPORT / DELTA)
        exported = export_student(within, export, student, folder, results, classes)
        write_source_moments(folder / DELTA, moments)
        write_classes_again(path / EXPORT, folder)
        for name, size in exported.sizes.items():
            console.print(f"{name}: {size:,} bytes", highlight=False)
        for name, reason in exported.refused.items():
            console.print(f"no {name}: {reason}", soft_wrap=True)
        console.print(f"wrote {shown_path(folder)}", soft_wrap=True)
        if formats is not None:
            checks = verify_export(within, experiment.student, export, folder, student)
            print_checks(checks, console)
            if not all(check.passed for check in checks):
                raise ExportError(f"{folder}: the export is not the model that was trained")


def _results(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((path / RESULTS).read_text())["results"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{path / RESULTS} cannot be read: {error}; resume the run first") from error
