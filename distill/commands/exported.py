"""``distill evaluate`` and ``distill verify``: they load what a run has exported.

Neither training nor augmentation is imported, so that they start quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from augment.base import absolute
from distill.config import read_run
from distill.data.base import Split
from distill.experiments.student import as_exporting
from distill.export.checksummed import ExportError
from distill.export.delta.io import load_delta, read_delta
from distill.export.settings import DELTA
from distill.export.targets.timm_folder import TimmFolder, check_timm_folder
from distill.models.network import NetworkSettings, create_network
from distill.report.items import Check
from distill.report.terminal import measures_table
from distill.run.context import open_context
from distill.run.export import EXPORT, verify_export, written_targets
from distill.run.folder import check_finished
from distill.run.trial import trying
from distill.training.evaluate import Predictions
from distill.training.measures import measures


def evaluate_run(path: Path, split: Split, console: Console) -> Predictions:
    """Measures of a run's student as exported: backbone and delta file, or the merged folder if all of it was trained.

    Args:
        path: the run folder.
        split: to predict on.
        console: shows the measures with their 95 % intervals.

    Returns:
        The predictions.
    """
    experiment = as_exporting(read_run(path, operations=False)[0], str(path))
    folder = path / EXPORT
    check_finished(path, folder)
    with open_context(experiment, console) as context:
        if experiment.student.train == "full":
            merged = folder / TimmFolder.folder
            check_timm_folder(merged)
            network = create_network(NetworkSettings(model=f"local-dir:{merged}"))
        else:
            classes = read_delta(folder / DELTA)[0].num_classes
            torch.manual_seed(experiment.seed)
            network = create_network(experiment.student.network, classes)
            network = replace(network, model=load_delta(folder / DELTA, network.model))
        context.data = experiment.evaluated(context.data)
        loader = context.loader(split, network.input)
        with trying(f"predicting the images of {split}"):
            predictions = context.predict(network.model, network.model, network.input, loader)
    estimates = measures(predictions)
    labels = "" if estimates else ", which have no labels to compare with"
    title = f"{absolute(path).name}: {len(predictions.ids)} images of {split}{labels}"
    console.print(title, soft_wrap=True)
    if estimates:
        console.print(measures_table(estimates))
    return predictions


def verify_run(path: Path, console: Console) -> None:
    """Verify a run's export; raises ``ExportError`` if a check fails."""
    experiment = as_exporting(read_run(path, operations=False)[0], str(path))
    check_finished(path, path / EXPORT)
    with open_context(experiment, console) as context:
        # If there is only one export, it is compared with the trained student.
        alone = not written_targets(experiment.export, path / EXPORT) or experiment.student.train == "full"
        student = experiment.load_student(context, path) if alone else None
        checks = verify_export(context, experiment.student, experiment.export, path / EXPORT, student)
    print_checks(checks, console)
    if not all(check.passed for check in checks):
        raise ExportError(f"{path / EXPORT}: the export is not the model that was trained")


def print_checks(checks: Sequence[Check], console: Console) -> None:
    """Show checks, one a line."""
    for check in checks:
        mark = ("✓", "green") if check.passed else ("✗", "red")
        console.print(Text.assemble(mark, f" {check.name}: {check.detail}"), soft_wrap=True)
