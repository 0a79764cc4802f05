"""Opens an exported student of any format as a function of images. ONNX and OpenVINO run without torch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from augment.base import UserError, is_import_path
from distill.export.artifact import MANIFEST, ProgramInput, ProgramManifest, read_artifact
from distill.export.checksummed import ExportError, read_inside
from distill.export.manifest import Preprocessing
from distill.export.settings import TARGETS

if TYPE_CHECKING:
    from distill.export.targets.program import ProgramTarget

Run = Callable[[np.ndarray], np.ndarray]
"""Images in the program's dtype, layout and batch, contiguous → logits [N, K] fp32."""
BATCH = 32
"""Images that run at once where the batch is not fixed."""


@dataclass(frozen=True)
class Opened:
    """An exported student, ready to run.

    Args:
        run: the loaded program.
        input: what it expects.
        classes: number of logits.
        labels: class names in the order of the logits; empty if there are none.
        preprocessing: how an image becomes the input.
    """

    run: Run
    input: ProgramInput
    classes: int
    labels: tuple[str, ...]
    preprocessing: Preprocessing

    def __call__(self, images: Any) -> Any:
        """Logits of images.

        Args:
            images: an array or a torch tensor of any number of images, as ``input`` says: [N, C, H, W] fp32,
                normalized, or [N, H, W, C] uint8. They run 32 at a time, or in the program's fixed batch, filled up.

        Returns:
            Logits [N, K] fp32, an array or a tensor on the CPU, as the images were.

        Raises:
            ExportError: the images have another dtype or size.
        """
        torch: Any = sys.modules.get("torch")
        if torch is not None and isinstance(images, torch.Tensor):
            return torch.from_numpy(self._logits(images.detach().cpu().numpy()))
        return self._logits(np.asarray(images))

    def _logits(self, images: np.ndarray) -> np.ndarray:
        if images.dtype != self.input.dtype or images.ndim != 4 or images.shape[1:] != self.input.shape:
            raise ExportError(
                f"expected images {self.input}; these are {list(images.shape)} {images.dtype}: size and dtype of an "
                "exported program are fixed"
            )
        size = self.input.batch or BATCH
        parts = [self._part(images[start : start + size]) for start in range(0, len(images), size)]
        return np.concatenate([np.empty((0, self.classes), np.float32), *parts])

    def _part(self, images: np.ndarray) -> np.ndarray:
        count = len(images)
        if self.input.batch is not None and count < self.input.batch:
            images = np.concatenate([images, np.zeros((self.input.batch - count, *self.input.shape), images.dtype)])
        return np.asarray(self.run(np.ascontiguousarray(images)), np.float32)[:count]


def open(folder: Path | str, *, allow_plugins: bool = False) -> Opened:
    """Open an exported student: the folder of any format that ``distill export`` writes, or a timm folder.

    Every file is checked against the manifest before a loader sees it.

    Args:
        folder: for instance ``RUN/export/onnx``.
        allow_plugins: import the class of a format that is not in this package, which the manifest names.

    Returns:
        A function of images, numpy in and out, or torch in and out.

    Raises:
        ExportError: a file is damaged or replaced, the format's packages are not installed, or the format is unknown.
    """
    folder = Path(folder)
    raw = read_inside(folder, MANIFEST)
    try:
        content = json.loads(raw)
        is_program = "target" in content
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"{folder / MANIFEST}: damaged, or not a manifest with a seal") from error
    if not is_program:
        return _open_timm(folder)
    manifest, files = read_artifact(folder)
    target = _target(manifest, folder, allow_plugins)
    return target.executable(manifest, files)


def _target(manifest: ProgramManifest, folder: Path, allow_plugins: bool) -> ProgramTarget:
    from distill.export.targets.base import require
    from distill.export.targets.program import ProgramTarget

    name = str(manifest.target.get("type"))
    if is_import_path(name) and not allow_plugins:
        raise ExportError(f"{folder}: {name} is not a format of this package; allow_plugins=True imports it")
    try:
        settings = TARGETS.settings_of(name).model_validate(manifest.target)
        target: Any = settings.component(settings)  # type: ignore[misc]
    except (UserError, ValueError) as error:
        raise ExportError(f"{folder}: not a format that this version reads: {error}") from error
    if not isinstance(target, ProgramTarget):
        raise ExportError(f"{folder}: {name} is not a format of programs")
    require([target])
    return target


def _open_timm(folder: Path) -> Opened:
    import torch

    from distill.export.logits import logits_of
    from distill.export.targets.timm_folder import CONFIG, TimmFolder

    TimmFolder(TimmFolder.Settings()).check(folder)
    config = json.loads(read_inside(folder, CONFIG))
    declared = config["pretrained_cfg"]
    preprocessing = Preprocessing(**{name: declared[name] for name in Preprocessing.model_fields if name in declared})
    channels, height, width = preprocessing.input_size
    from distill.models.network import timm_with_own_models

    logits = logits_of(timm_with_own_models().create_model(f"local-dir:{folder.resolve()}", pretrained=True))

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return logits(torch.from_numpy(images)).numpy()

    expected = ProgramInput(dtype="float32", layout="NCHW", channels=channels, height=height, width=width, batch=None)
    return Opened(run, expected, config["num_classes"], tuple(config.get("label_names", ())), preprocessing)
