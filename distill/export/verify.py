"""Proof that an export is what was trained: hashes first, then the same logits from a fresh process.

The fresh process (``python -m distill.export.verify FOLDER``, a folder that :func:`verify` prepares) builds the
backbone, loads the delta file onto it, loads the merged folder with timm alone, and runs both on the same images.
Structural deltas have no merged folder: then it is the delta file that must equal the model in memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

import distill
from augment.base import Settings
from distill.deltas.state import whole_state
from distill.export.checksummed import ExportError
from distill.export.delta.io import check_backbone, load_delta, read_delta
from distill.export.targets.timm_folder import check_timm_folder
from distill.models.network import timm_with_ours

TOLERANCE = 1e-5
ENOUGH_IMAGES = 256


class Comparison(Settings):
    """The logits of the merged model, or of the delta file where nothing is merged, against others, over all images."""

    what: str
    """``merged`` or ``delta file``."""
    against: str
    """``delta file`` or ``live model``."""
    relative_difference: float
    """Largest absolute difference over the largest absolute logit."""
    same_top1: int
    """Images on which both have the same top-1 class."""


class Report(Settings):
    """What was proved."""

    images: int
    merged_sha256: str | None
    """None where nothing is merged."""
    delta_sha256: str | None
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        return bool(self.comparisons) and all(
            c.relative_difference <= TOLERANCE and c.same_top1 == self.images for c in self.comparisons
        )


class _Request(Settings):
    """What the fresh process is asked, beside ``images.safetensors`` and ``backbone.safetensors``."""

    merged: str | None
    delta: str | None


def verify(
    merged: Path | None,
    images: Tensor,
    *,
    delta: Path | None = None,
    make_backbone: Callable[[], nn.Module] | None = None,
    model: nn.Module | None = None,
    enough: int = ENOUGH_IMAGES,
) -> Report:
    """Check an export.

    Args:
        merged: the timm folder; None for a student with structural deltas, which needs ``delta`` and ``model``.
        images: [N, 3, H, W] fp32, normalized as the student sees them; real ones, at least ``enough``.
        delta: the delta folder; none for a student that was trained whole.
        make_backbone: makes the timm model that the delta belongs to, with the student's number of classes.
        model: the model in memory that was exported, to compare with as well (or instead).

    Returns:
        The report; ``report.passed`` says whether merged equals unmerged: relative difference ≤ 1e-5, every top-1 the
        same.

    Raises:
        ExportError: a file is damaged or replaced (before any loader has seen it), the backbone is another one, or
            the fresh process cannot load what was written.
    """
    if len(images) < enough:
        raise ExportError(f"{len(images)} images prove too little; give at least {enough}")
    if (delta is None) != (make_backbone is None) or (delta is None and model is None):
        raise ExportError("verify needs a delta folder and its backbone, or the model in memory, or both")
    if merged is None and (delta is None or model is None):
        raise ExportError("without a merged folder verify needs the delta folder, its backbone and the model in memory")
    merged_sha256 = None if merged is None else check_timm_folder(merged).weights_sha256
    manifest = None if delta is None else read_delta(delta)[0]
    backbone = None if make_backbone is None else make_backbone()
    if manifest is not None and backbone is not None and delta is not None:
        check_backbone(manifest, backbone, delta)  # the fresh process does so too, and takes long to say it
    inputs = {"images": images.detach().float().cpu().contiguous()}
    if model is not None:
        inputs["live"] = _logits(model, inputs["images"])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        safetensors.torch.save_file(inputs, work / "images.safetensors")
        if backbone is not None:
            tensors = {n: t.detach().cpu().contiguous().clone() for n, t in whole_state(backbone).items()}
            safetensors.torch.save_file(tensors, work / "backbone.safetensors")
        request = _Request(
            merged=str(Path(merged).resolve()) if merged else None, delta=str(Path(delta).resolve()) if delta else None
        )
        (work / "request.json").write_text(request.model_dump_json())
        _run_fresh(work)
        outputs = safetensors.torch.load_file(work / "logits.safetensors")
    found = {"merged": outputs.get("merged"), "delta file": outputs.get("delta"), "live model": inputs.get("live")}
    (what, logits), *others = [(name, logits) for name, logits in found.items() if logits is not None]
    return Report(
        images=len(images),
        merged_sha256=merged_sha256,
        delta_sha256=None if manifest is None else manifest.sha256,
        comparisons=tuple(_compare(what, logits, against, other) for against, other in others),
    )


def _compare(what: str, logits: Tensor, against: str, other: Tensor) -> Comparison:
    if logits.shape != other.shape:
        raise ExportError(f"logits of the {what} are {tuple(logits.shape)}, of the {against} {tuple(other.shape)}")
    # A logit that is not finite must fail the test, so it counts as infinitely far away.
    relative = ((logits - other).abs().max() / other.abs().max()).nan_to_num(torch.inf, torch.inf)
    return Comparison(
        what=what,
        against=against,
        relative_difference=float(relative.clamp(max=1e30)),
        same_top1=int((logits.argmax(1) == other.argmax(1)).sum()),
    )


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """fp32, eval mode, plain layout: the same arithmetic for all that are compared."""
    training = [module for module in model.modules() if module.training]
    device = next(model.parameters()).device
    model.eval()
    logits = torch.cat([model(batch.to(device)).float().cpu() for batch in images.split(32)])
    for module in training:
        module.training = True
    return logits


def _run_fresh(work: Path) -> None:
    root = str(Path(distill.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "distill.export.verify", str(work)]
    environment = {**os.environ, "PYTHONPATH": path}
    # In a group of its own: Ctrl-C is for the run, which finishes this stage and stops after it.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, process_group=0)
    if done.returncode < 0:
        raise ExportError(f"the fresh process was ended by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise ExportError(f"a fresh process cannot load the export:\n{done.stderr.strip()[-2000:]}")


def _fresh_process(work: Path) -> None:
    timm = timm_with_ours()
    request = _Request.model_validate_json((work / "request.json").read_text())
    images = safetensors.torch.load_file(work / "images.safetensors")["images"]
    outputs = {}
    if request.merged is not None:
        check_timm_folder(Path(request.merged))
        outputs["merged"] = _logits(timm.create_model(f"local-dir:{request.merged}", pretrained=True), images)
    if request.delta is not None:
        manifest = read_delta(Path(request.delta))[0]
        backbone = timm.create_model(
            manifest.architecture, pretrained=False, num_classes=manifest.num_classes, **manifest.model_args
        )
        backbone.load_state_dict(safetensors.torch.load_file(work / "backbone.safetensors"))
        outputs["delta"] = _logits(load_delta(Path(request.delta), backbone), images)
    safetensors.torch.save_file(outputs, work / "logits.safetensors")


if __name__ == "__main__":
    _fresh_process(Path(sys.argv[1]))
