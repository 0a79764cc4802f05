"""A detector as files: its own weights as safetensors, and a delta file for the backbone.

::

    detector.json          what it is made of, sealed with a checksum
    detector.safetensors   pyramid and heads; with a backbone that was trained as a whole, that too
    delta/                 the delta file of the backbone, if deltas were trained
    start/                 the delta file that was merged into the backbone before, if there was one

:func:`load_detector` puts it together again, and refuses damaged files and another backbone. Nothing is unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import nn

from augment.base import Registry
from distill.deltas.attach import deltas
from distill.deltas.sites import classifier_names
from distill.deltas.state import backbone_state, load_exactly
from distill.detection.detector import STUDENT, BuiltDetector, build_detector
from distill.detection.detectors.base import Detector
from distill.detection.settings import DetectorBackboneSettings
from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.delta.io import load_delta, save_delta
from distill.export.manifest import Preprocessing, Result
from distill.files import write_atomic
from distill.models.fingerprint import Fingerprint, differences, fingerprint
from distill.models.network import Network, create_network
from distill.models.settings import NetworkSettings
from distill.models.teacher_settings import TeacherNetworkSettings
from distill.run.teacher_network import make_network

MANIFEST, TENSORS, DELTA, START = "detector.json", "detector.safetensors", "delta", "start"


class DetectorManifest(Checksummed):
    """The content of ``detector.json``."""

    schema_version: Literal[1] = 1
    detector: dict[str, Any]
    """Settings of the detector, with its ``type``."""
    categories: tuple[str, ...]
    """Names of the objects' classes; label 1 is the first."""
    network: dict[str, Any]
    """Settings of the backbone's network, without a delta."""
    architecture: str
    way: Literal["frozen", "deltas", "whole"]
    """How the backbone was trained."""
    backbone: Fingerprint
    """Of the backbone before training."""
    preprocessing: Preprocessing
    start: bool
    """Whether a delta file was merged into the backbone first."""
    sha256: str
    """Of ``detector.safetensors``."""
    results: tuple[Result, ...] = ()


def save_detector(
    folder: Path,
    built: BuiltDetector,
    settings: Detector.Settings,
    backbone: DetectorBackboneSettings,
    network: TeacherNetworkSettings,
    results: Sequence[Result] = (),
) -> DetectorManifest:
    """Write a trained detector.

    Args:
        folder: where to write; it is made if it does not exist.
        built: the detector.
        settings: of it.
        backbone: what of its backbone was trained.
        network: that it was made from.
        results: measured numbers.

    Returns:
        The content of ``detector.json``.

    Raises:
        ExportError: deltas were trained and change nothing.
    """
    student = built.student
    folder.mkdir(parents=True, exist_ok=True)
    for part in (DELTA, START):
        shutil.rmtree(folder / part, ignore_errors=True)
    merged = network.delta is not None and backbone.way != "whole"  # all tensors of a whole one are in the file
    if merged and network.delta is not None:
        shutil.copytree(network.delta, folder / START)
    if backbone.way == "deltas":
        save_delta(
            folder / DELTA,
            student.model,
            student.backbone,
            origin=student.network.origin.partition("+")[0],
            preprocessing=Preprocessing.of(student.model),
        )
    own = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in built.own_state().items()
        if backbone.way == "whole" or not name.startswith(STUDENT)
    }
    sha256 = write_atomic(folder / TENSORS, safetensors.torch.save(own))
    manifest = DetectorManifest(
        detector=settings.model_dump(mode="json"),
        categories=built.categories,
        network=network.model_dump(mode="json", include=set(NetworkSettings.model_fields)),
        architecture=student.network.architecture,
        way=backbone.way,  # type: ignore[arg-type]
        backbone=student.backbone,
        preprocessing=Preprocessing.of(student.model, student.input.size),
        start=merged,
        sha256=sha256,
        results=tuple(results),
    )
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def load_detector(folder: Path, network: NetworkSettings | None = None, *, allow_plugins: bool = False) -> nn.Module:
    """The detector of an export folder, frozen and in eval mode.

    ``detector(images)`` takes a list of images [3, H, W] in [0, 1] of any sizes and gives for each ``boxes`` [N, 4],
    ``labels`` [N] (1 is the first of ``detector.categories``) and ``scores`` [N].

    Args:
        folder: that a run of ``kind: detection`` exported.
        network: the backbone, if the one named in the file is elsewhere now; not used where all of it was trained.
        allow_plugins: import a detector class outside this package that the file names. Importing runs code: allow it
            only for files that you trust.

    Returns:
        torchvision's detector, with the attribute ``categories``.

    Raises:
        ExportError: a file is damaged, or the backbone is another one.
    """
    folder = Path(folder)
    manifest = read_checksummed(folder / MANIFEST, DetectorManifest)
    name = str(manifest.detector.get("type"))
    if ":" in name and not allow_plugins:
        raise ExportError(f"{folder}: it needs the class {name!r}; pass allow_plugins=True if you trust it")
    settings = Registry("distill.detection.detectors", "Detector").settings_of(name).model_validate(manifest.detector)
    assert isinstance(settings, Detector.Settings)
    own = network or NetworkSettings.model_validate(manifest.network)
    tensors = safetensors.torch.load(read_checked(folder, TENSORS, manifest.sha256))
    spec = manifest.preprocessing.input
    with torch.random.fork_rng(devices=[]):
        made = _backbone(folder, manifest, own)
        made = replace(made, input=spec)
        plain = DetectorBackboneSettings(network=own, train="full" if manifest.way == "whole" else "deltas")
        built = build_detector(made, plain, settings, manifest.categories, seed=0)
    if manifest.way == "deltas":
        _with_delta(folder, built, allow_plugins)
    targets = {
        key: tensor
        for key, tensor in built.module.state_dict().items()
        if manifest.way == "whole" or not key.startswith(STUDENT)
    }
    load_exactly(targets, tensors, f"file {folder / TENSORS}")
    module = built.module.eval().requires_grad_(False)
    module.categories = manifest.categories  # type: ignore[assignment]
    return module


def _backbone(folder: Path, manifest: DetectorManifest, network: NetworkSettings) -> Network:
    """The backbone before training, checked; of one that was trained as a whole the architecture alone."""
    if manifest.way == "whole":
        plain = {"model": manifest.architecture, "pretrained": False, "in_chans": network.in_chans}
        return create_network(NetworkSettings.model_validate(plain), 0)
    if manifest.start:
        tree = {**network.model_dump(), "delta": folder / START}
        made = make_network(TeacherNetworkSettings.model_validate(tree), 0)
    else:
        made = make_network(network, 0)
    actual = fingerprint(backbone_state(made.model, classifier_names(made.model)))
    if problems := differences(manifest.backbone, actual):
        lines = "\n  ".join(problems[:20])
        raise ExportError(f"{folder}: made for another backbone ({manifest.architecture}):\n  {lines}")
    return made


def _with_delta(folder: Path, built: BuiltDetector, allow_plugins: bool) -> None:
    """Put the deltas of the delta file into the backbone of a detector."""
    model = load_delta(folder / DELTA, built.student.model, allow_plugins=allow_plugins)
    assert deltas(model)
    built.student.model = model
    built.student.network.model = model
