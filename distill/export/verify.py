"""Verification of an export: SHA-256 of every file first, then the same logits from a fresh process.

The fresh process (``python -m distill.export.verify FOLDER``, a folder that :func:`verify` prepares) builds the
backbone, loads the delta file onto it, opens a session of every target, and runs all of them on the same images. It
reads the targets' settings from a request file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import distill
from augment.base import Settings, UserError
from distill.deltas.state import whole_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import check_backbone, load_delta, read_delta
from distill.export.logits import logits_of
from distill.export.settings import DELTA_FILE, LIVE_MODEL, TARGETS
from distill.export.targets.base import ExportTarget
from distill.models.network import create_network, timm_with_own_models
from distill.models.settings import NetworkSettings

TOLERANCE = 1e-5
"""For the delta file compared with the live model; every target has its own."""
MIN_IMAGES = 256


class Comparison(Settings):
    """The logits of what was written, compared with a reference over all images."""

    what: str
    """Title of a target, or ``delta file``."""
    against: str
    """``delta file`` or ``live model``."""
    relative_difference: float
    """Largest absolute difference over the largest absolute logit."""
    tolerance: float
    same_top1: int
    """Images on which both have the same top-1 class."""
    images: int
    agreement: float = 1.0
    """Smallest accepted share of images with the same top-1 class."""

    @property
    def passed(self) -> bool:
        agrees = self.same_top1 >= self.agreement * self.images
        return self.relative_difference <= self.tolerance and agrees


class VerificationReport(Settings):
    """The result of ``verify``."""

    images: int
    hashes: dict[str, str]
    """Title of what was written → SHA-256 of its weights."""
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(comparison.passed for comparison in self.comparisons)


class NamedBackbone(Settings):
    """A backbone by its settings, made in the fresh process alone, so that this one need not import timm."""

    network: NetworkSettings
    seed: int
    """Of weights that are not pretrained."""


class _VerifyRequest(Settings):
    """Input of the fresh process, besides ``images.safetensors`` and, unless named, ``backbone.safetensors``."""

    targets: dict[str, dict[str, Any]]
    """Folder of a target → its settings."""
    delta: str | None
    backbone: NamedBackbone | None
    allow_plugins: bool


def verify(
    targets: Mapping[Path, ExportTarget],
    images: Tensor,
    *,
    delta: Path | None = None,
    make_backbone: Callable[[], nn.Module] | NamedBackbone | None = None,
    model: nn.Module | None = None,
    min_images: int = MIN_IMAGES,
    fresh: bool = True,
    allow_plugins: bool = False,
) -> VerificationReport:
    """Check an export.

    Args:
        targets: folder → the target that wrote it; empty for a student that only the delta file can hold, which needs
            ``delta`` and ``model``.
        images: [N, 3, H, W] fp32, normalized as the student's input; real images, at least ``min_images``.
        delta: the delta folder; None for a student whose every weight was trained.
        make_backbone: makes the timm model that the delta belongs to, with the student's number of classes, or names
            its settings; given exactly when ``delta`` is.
        model: the live model that was exported, to compare with in addition to the delta file, or instead of it.
        min_images: smallest number of images that is accepted.
        fresh: load what was written in a new process; False: in this one, for a check before training.
        allow_plugins: import delta classes outside this package that the delta file names.

    Returns:
        The report. It passes if every comparison is within the target's tolerance and has its share of equal top-1.

    Raises:
        ExportError: a file is damaged or replaced (before any loader reads it), the backbone is another one, or the
            fresh process cannot load what was written.
    """
    if len(images) < min_images:
        raise ExportError(f"{len(images)} images are too few; give at least {min_images}")
    if (delta is None) != (make_backbone is None) or (delta is None and model is None):
        raise ExportError("verify needs a delta folder and its backbone, or the model in memory, or both")
    if not targets and (delta is None or model is None):
        raise ExportError("without a target verify needs the delta folder, its backbone and the model in memory")
    hashes = {target.title: target.check(folder) for folder, target in targets.items()}
    manifest = None if delta is None else read_delta(delta)[0]
    named = make_backbone if isinstance(make_backbone, NamedBackbone) else None
    backbone = make_backbone() if make_backbone is not None and not isinstance(make_backbone, NamedBackbone) else None
    if manifest is not None and delta is not None:
        hashes[DELTA_FILE] = manifest.sha256
        if backbone is not None:
            check_backbone(manifest, backbone, delta)  # the fresh process checks it too, but only after it has started
    inputs = {"images": images.detach().float().cpu().contiguous()}
    logits: dict[str, Tensor] = {}
    if model is not None:
        logits[LIVE_MODEL] = logits_of(model)(inputs["images"])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        safetensors.torch.save_file(inputs, work / "images.safetensors")
        if backbone is not None:
            tensors = {n: t.detach().cpu().contiguous().clone() for n, t in whole_state(backbone).items()}
            safetensors.torch.save_file(tensors, work / "backbone.safetensors")
        request = _VerifyRequest(
            targets={
                str(folder.resolve()): target.settings.model_dump(mode="json") for folder, target in targets.items()
            },
            delta=str(Path(delta).resolve()) if delta else None,
            backbone=named,
            allow_plugins=allow_plugins,
        )
        (work / "request.json").write_text(request.model_dump_json())
        (_run_fresh if fresh else _fresh_process)(work)
        logits |= safetensors.torch.load_file(work / "logits.safetensors")
    comparisons = [
        _compare(
            target.title, logits[str(folder.resolve())], against, logits[against], target.tolerance, target.agreement
        )
        for folder, target in targets.items()
        for against in (DELTA_FILE, LIVE_MODEL)
        if against in logits
    ]
    against = DELTA_FILE if DELTA_FILE in logits else LIVE_MODEL
    comparisons += [
        _compare(f"{target.title} {name}", tensor, against, logits[against], _ANY, 0.0)
        for folder, target in targets.items()
        for key, tensor in logits.items()
        if (name := key.removeprefix(f"{folder.resolve()}{_OTHERWISE}")) != key
    ]
    if not targets:
        comparisons.append(_compare(DELTA_FILE, logits[DELTA_FILE], LIVE_MODEL, logits[LIVE_MODEL], TOLERANCE))
    return VerificationReport(images=len(images), hashes=hashes, comparisons=tuple(comparisons))


def _compare(
    what: str, logits: Tensor, against: str, other: Tensor, tolerance: float, agreement: float = 1.0
) -> Comparison:
    if logits.shape != other.shape:
        raise ExportError(f"logits of the {what} are {tuple(logits.shape)}, of the {against} {tuple(other.shape)}")
    # A logit that is not finite must fail the test, so it counts as infinitely far away.
    relative = ((logits - other).abs().max() / other.abs().max()).nan_to_num(torch.inf, torch.inf)
    return Comparison(
        what=what,
        against=against,
        relative_difference=float(relative.clamp(max=1e30)),
        tolerance=tolerance,
        same_top1=int((logits.argmax(1) == other.argmax(1)).sum()),
        images=len(logits),
        agreement=agreement,
    )


_OTHERWISE, _ANY = ", ", 1e30
"""Between a folder and the name of another session in the outputs of the fresh process; the tolerance of those."""
_START = """
import runpy, sys
module, work, *paths = sys.argv[1:]
sys.argv[1:] = [work]
sys.path += [path for path in paths if path not in sys.path]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""What a fresh process runs: a module, which finds the user's own classes where the parent does, after all else."""


@contextmanager
def fresh_process(work: Path, module: str, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Run a module in a fresh process, beside the body of the ``with`` statement, which waits for it at its end.

    The process reads its inputs from a folder and writes its outputs there. ``python -m`` would import from the current
    folder first, where a user's ``augment.py`` hides the package.

    Args:
        work: the folder, its only argument.
        module: as of ``python -m``.
        environment: variables that differ from this process's.

    Yields:
        While the process runs.

    Raises:
        ExportError: the process failed; the text has the end of its standard error.
    """
    root = str(Path(distill.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-c", _START, module, str(work), *filter(None, sys.path)]
    variables = {**os.environ, **(environment or {}), "PYTHONPATH": path}
    # In its own process group, so that Ctrl-C reaches only the run, which stops after this stage.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=errors, process_group=0) as process,
    ):
        try:
            yield
            process.wait()
        except BaseException:
            process.kill()
            raise
        errors.seek(0)
        written = errors.read().decode(errors="replace").strip()
    if process.returncode < 0:
        raise ExportError(f"the fresh process was ended by {signal.Signals(-process.returncode).name}")
    if process.returncode:
        raise ExportError(f"a fresh process cannot load the export:\n{written[-2000:]}")


def _run_fresh(work: Path) -> None:
    with fresh_process(work, "distill.export.verify"):
        pass


def _fresh_process(work: Path) -> None:
    request = _VerifyRequest.model_validate_json((work / "request.json").read_text())
    images = safetensors.torch.load_file(work / "images.safetensors")["images"]
    outputs = {}
    for folder, plain in request.targets.items():
        settings = TARGETS.settings_of(plain["type"]).model_validate(plain)
        target: ExportTarget = settings.component(settings)  # type: ignore[misc]
        outputs[folder] = target.session(Path(folder))(images).contiguous()
        for name, session in target.other_sessions(Path(folder)).items():
            outputs[f"{folder}{_OTHERWISE}{name}"] = session(images).contiguous()
    if request.delta is not None:
        loaded = load_student(Path(request.delta), request.backbone, work, request.allow_plugins)
        outputs[DELTA_FILE] = logits_of(loaded)(images)
    safetensors.torch.save_file(outputs, work / "logits.safetensors")


def load_student(delta: Path, named: NamedBackbone | None, work: Path, allow_plugins: bool) -> nn.Module:
    """The student of a delta file, in a fresh process.

    Args:
        delta: its folder.
        named: its backbone; None: the backbone's tensors are in ``backbone.safetensors`` in ``work``.
        work: the folder of the process.
        allow_plugins: import delta classes outside this package that the delta file names.

    Returns:
        The backbone with the deltas attached.
    """
    manifest = read_delta(delta)[0]
    if named is not None:
        torch.manual_seed(named.seed)
        backbone = create_network(named.network, manifest.num_classes).model
    else:
        backbone = timm_with_own_models().create_model(
            manifest.architecture, pretrained=False, num_classes=manifest.num_classes, **manifest.model_args
        )
        backbone.load_state_dict(safetensors.torch.load_file(work / "backbone.safetensors"))
    return load_delta(delta, backbone, allow_plugins=allow_plugins)


if __name__ == "__main__":
    try:
        _fresh_process(Path(sys.argv[1]))
    except UserError as wrong:
        sys.exit(str(wrong))
