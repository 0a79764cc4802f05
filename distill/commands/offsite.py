"""``distill emulator`` and ``distill plug``: the owner's two parts of offsite-tuning."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from augment.console import shown_path
from distill.commands.target_folder import written_beside
from distill.experiments.base import Experiment
from distill.experiments.offsite import OffsiteExperiment
from distill.export.checksummed import ExportError
from distill.export.delta.io import DeltaManifest, read_delta, save_delta
from distill.export.settings import DELTA
from distill.export.targets.base import About, ExportTarget
from distill.export.targets.timm_folder import CARD, CONFIG, MANIFEST, TENSORS, TimmFolder, check_timm_folder
from distill.export.verify import verify
from distill.models.network import create_network
from distill.models.settings import NetworkSettings
from distill.run.folder import unfinished
from distill.run.from_delta import delta_folder
from distill.run.runner import run_plan
from distill.run.teacher_network import check_file
from distill.stages.make_emulator import FOLDER
from distill.transfer.offsite import plugged_student
from distill.yaml_tree import ConfigError

GIVEN = CONFIG, TENSORS, MANIFEST, CARD
"""The files of an emulator's folder; there are no others."""
IMAGES = 32
"""Images of noise on which the merged network is compared with the delta file."""


def make_emulator(experiment: Experiment, to: Path, console: Console) -> None:
    """Make the emulator of a config, and write it as a timm folder.

    A distillation is a run ``NAME-emulator`` in the config's output folder, which stays with the owner: its checkpoints
    hold the owner's weights. An unfinished run of an equal config is continued.

    Args:
        experiment: of ``kind: offsite``; its data are the owner's, and read only if the middle is distilled.
        to: folder of the emulator, with its files alone.
        console: where to print.

    Raises:
        ConfigError: another kind, or the run would be in the folder of the emulator.
        ExportError: the folder holds other files.
        StageError: there is no such emulator.
    """
    if not isinstance(experiment, OffsiteExperiment):
        raise ConfigError(f"kind: {experiment.kind}, and distill emulator needs kind: offsite")
    if to.is_dir() and (others := sorted(path.name for path in to.iterdir() if path.name not in GIVEN)):
        raise ExportError(f"{to} holds {others[0]!r}, and the folder of an emulator is given away; name a new folder")
    stage = experiment.plan_emulator()
    if stage.distill is None:
        with TemporaryDirectory() as name:
            stage.check_files()
            emulator = stage.undistilled(Path(name))
            _say(console, f"emulator: {emulator.plan}\n  {emulator.leaving}")
            _give(emulator.path, to, console)
        return
    if experiment.output.resolve().is_relative_to(to.resolve()):
        raise ConfigError(
            f"output: {experiment.output} is in {to}, which is given away, and the run would hold the owner's weights"
        )
    own = experiment.model_copy(update={"name": f"{experiment.name}-emulator"})
    tree = own.model_dump(mode="json")
    run = run_plan(own, [stage], tree, unfinished(own.output, tree) or False, console, "the same command")
    _give(run / stage.name / FOLDER, to, console)
    _say(console, f"{shown_path(run)} stays with the owner: its checkpoints hold weights of the full network")


def plug(
    delta: Path,
    into: str,
    to: Path,
    console: Console,
    *,
    checkpoint: Path | None = None,
    prefix: str | None = None,
    allow_plugins: bool = False,
) -> None:
    """Attach a delta file of an emulator to the full network, and write and verify the student.

    Args:
        delta: folder of the delta file, or of a run on the emulator.
        into: name of the full network, as ``student.network.model``.
        to: folder to write to: ``delta``, and ``merged`` if the deltas can be merged.
        console: where to print.
        checkpoint: file with the weights of the network, as ``student.network.checkpoint``; None: those of its name.
        prefix: of the names in the checkpoint, as ``student.network.prefix``.
        allow_plugins: import delta classes outside this package that the file names. Importing runs code.

    Raises:
        ExportError: the ends are not those of this network, a file is damaged, or the verification fails.
        StageError: there is no such network.
    """
    folder = delta_folder(delta)
    manifest, _ = read_delta(folder)
    network = _network(into, checkpoint, prefix, manifest)
    check_file(network, "--into")
    student, _ = plugged_student(folder, network, allow_plugins=allow_plugins)
    about = About(student.network.origin, manifest.labels, manifest.preprocessing)
    target = TimmFolder(TimmFolder.Settings())
    with written_beside(to, (DELTA, target.folder)) as made:
        save_delta(
            made / DELTA, student.model, student.backbone, **about.of_weights, made_by=f"plug: {manifest.sha256}"
        )
        targets: dict[Path, ExportTarget] = {}
        if (reason := target.unsupported(student.model)) is None:
            target.write(student.model, made / target.folder, about)
            targets = {made / target.folder: target}
        else:
            _say(console, f"no {target.title}: {reason}")
        channels, height, width = manifest.preprocessing.input_size
        images = torch.randn(IMAGES, channels, height, width, generator=torch.Generator().manual_seed(0))
        report = verify(
            targets,
            images,
            delta=made / DELTA,
            make_backbone=lambda: create_network(network, manifest.num_classes).model,
            model=student.model,
            min_images=IMAGES,
            allow_plugins=allow_plugins,
        )
        for each in report.comparisons:
            mark = ("✓", "green") if each.passed else ("✗", "red")
            text = f" {each.what} = {each.against}: relative difference {each.relative_difference:.1e}"
            console.print(Text.assemble(mark, text), soft_wrap=True)
        if not report.passed:
            raise ExportError(f"{to}: what was made is not the student that was plugged in, so nothing was written")
    _say(console, f"wrote {shown_path(to)}: {manifest.num_classes} classes, from {shown_path(folder)}")


def _give(emulator: Path, to: Path, console: Console) -> None:
    """Copy the files of an emulator to the folder that is given away."""
    with written_beside(to, GIVEN) as made:
        for name in GIVEN:
            shutil.copy2(emulator / name, made / name)
        check_timm_folder(made)
    _say(console, f"wrote {shown_path(to)}; its user sets student.network.model to local-dir:{shown_path(to)}")


def _network(into: str, checkpoint: Path | None, prefix: str | None, manifest: DeltaManifest) -> NetworkSettings:
    """The full network, with the input that the delta file was trained with."""
    noted = manifest.preprocessing
    channels, size, _ = noted.input_size
    about: dict[str, Any] = {"size": size, "mean": noted.mean, "std": noted.std, "in_chans": channels}
    try:
        return NetworkSettings(model=into, checkpoint=checkpoint, prefix=prefix, **about)
    except ValidationError as error:
        raise ExportError(f"--into: {error.errors()[0]['msg']}") from error


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
