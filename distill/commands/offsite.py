"""``distill emulator`` and ``distill plug``: the owner's two parts of offsite-tuning."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from augment.console import shown_path
from distill.experiments.base import Experiment
from distill.experiments.offsite import OffsiteExperiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, read_delta, save_delta
from distill.export.settings import DELTA
from distill.export.targets.base import About, ExportTarget
from distill.export.targets.timm_folder import TimmFolder, check_timm_folder
from distill.export.verify import verify
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.from_delta import delta_folder
from distill.run.runner import run_plan
from distill.run.teacher_network import check_file
from distill.stages.make_emulator import FOLDER
from distill.transfer.offsite import plugged_student
from distill.yaml_tree import ConfigError

RUN = "run"
"""Folder of the run that makes an emulator, in that of the emulator."""
IMAGES = 32
"""Images of noise on which the merged network is compared with the delta file."""


def make_emulator(experiment: Experiment, to: Path, console: Console) -> None:
    """Make the emulator of a config, and write it as a timm folder.

    Args:
        experiment: of ``kind: offsite``; its data are the owner's, and read only if the middle is distilled.
        to: folder of the emulator; the run is in its subfolder ``run``.
        console: where to print.

    Raises:
        ConfigError: another kind.
        StageError: there is no such emulator.
    """
    if not isinstance(experiment, OffsiteExperiment):
        raise ConfigError(f"kind: {experiment.kind}, and distill emulator needs kind: offsite")
    stage = experiment.plan_emulator()
    if stage.distill is None:
        with TemporaryDirectory() as name:
            stage.check_files()
            emulator = stage.undistilled(Path(name))
            _say(console, f"emulator: {emulator.plan}\n  {emulator.leaving}")
            _give(emulator.path, to, console)
        return
    own = experiment.model_copy(update={"name": RUN, "output": to})
    run = run_plan(own, [stage], own.model_dump(mode="json"), console=console)
    _give(run / stage.name / FOLDER, to, console)


def plug(delta: Path, into: str, to: Path, console: Console) -> None:
    """Attach a delta file of an emulator to the full network, and write and verify the student.

    Args:
        delta: folder of the delta file, or of a run on the emulator.
        into: name of the full network, as ``student.network.model``.
        to: folder to write to: ``delta``, and ``merged`` if the deltas can be merged.
        console: where to print.

    Raises:
        ExportError: the ends are not those of this network, a file is damaged, or the verification fails.
        StageError: there is no such network.
    """
    folder = delta_folder(delta)
    manifest, _ = read_delta(folder)
    network = _network(into, manifest)
    check_file(network, "--into")
    student, _ = plugged_student(folder, network)
    about = About(student.network.origin, manifest.labels, manifest.preprocessing)
    save_delta(to / DELTA, student.model, student.backbone, **vars(about), made_by=f"plug: {manifest.sha256}")
    target = TimmFolder(TimmFolder.Settings())
    targets: dict[Path, ExportTarget] = {}
    if (reason := target.unsupported(student.model)) is None:
        target.write(student.model, to / target.folder, about)
        targets = {to / target.folder: target}
    else:
        _say(console, f"no {target.title}: {reason}")
    channels, height, width = manifest.preprocessing.input_size
    images = torch.randn(IMAGES, channels, height, width, generator=torch.Generator().manual_seed(0))
    report = verify(
        targets,
        images,
        delta=to / DELTA,
        make_backbone=lambda: create_network(network, manifest.num_classes).model,
        model=student.model,
        min_images=IMAGES,
    )
    for each in report.comparisons:
        mark = ("✓", "green") if each.passed else ("✗", "red")
        text = f" {each.what} = {each.against}: relative difference {each.relative_difference:.1e}"
        console.print(Text.assemble(mark, text), soft_wrap=True)
    if not report.passed:
        raise ExportError(f"{to}: what was written is not the student that was plugged in")
    _say(console, f"wrote {shown_path(to)}: {manifest.num_classes} classes, from {shown_path(folder)}")


def _give(emulator: Path, to: Path, console: Console) -> None:
    """Copy the files of an emulator to the folder that is given away."""
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(emulator.iterdir()):
        shutil.copy2(path, to / path.name)
    check_timm_folder(to)
    _say(console, f"wrote {shown_path(to)}; its user sets student.network.model to local-dir:{shown_path(to)}")


def _network(into: str, manifest: DeltaManifest) -> NetworkSettings:
    """The full network, with the input that the delta file was trained with."""
    noted = manifest.preprocessing
    channels, size, _ = noted.input_size
    try:
        return NetworkSettings(model=into, size=size, mean=noted.mean, std=noted.std, in_chans=channels)
    except ValidationError as error:
        raise ExportError(f"--into: {error.errors()[0]['msg']}") from error


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
