"""A fitted anomaly detector as files: statistics or bank as safetensors, and a manifest with their SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from augment.base import Registry
from distill.export.checksummed import Checksummed, ExportError, read_checked, read_checksummed, write_checksummed
from distill.export.manifest import Preprocessing
from distill.files import write_atomic
from distill.models.features import Features
from distill.models.network import extract
from distill.transfer.anomaly.base import AnomalyMethod

MANIFEST, TENSORS = "anomaly.json", "anomaly.safetensors"
PROBE = "probe"
"""Tensor of the file: the network's pooled features of a generated image, by which the network is recognized."""


class AnomalyManifest(Checksummed):
    """The content of ``anomaly.json``."""

    schema_version: Literal[1] = 1
    method: dict[str, Any]
    """Settings of the method, with its ``type``."""
    threshold: float
    """Images with a larger score are anomalous."""
    false_alarms: float
    """The rate of false alarms that the threshold was set for."""
    normal_images: int
    """How many the method was fitted on."""
    held_out: int
    """How many other normal images set the threshold."""
    preprocessing: Preprocessing
    sha256: str
    """Of ``anomaly.safetensors``."""


class AnomalyDetector(nn.Module):
    """``forward(images [B, 3, H, W], normalized) → (scores [B], maps [B, H, W] or None)``.

    Args:
        model: a timm model.
        method: that scores its outputs.
        state: what the method knows of normal images.
        threshold: images with a larger score are anomalous.
        size: (height, width) of the model's input.
    """

    def __init__(
        self,
        model: nn.Module,
        method: AnomalyMethod,
        state: Mapping[str, Tensor],
        threshold: float,
        size: tuple[int, int],
    ):
        super().__init__()
        self.model, self.method, self.state = model, method, dict(state)
        self.threshold, self.size = threshold, size

    def extra_repr(self) -> str:
        stored = sum(tensor.numel() * tensor.element_size() for tensor in self.state.values())
        return f"method={self.method.settings.type}, threshold={self.threshold:.4g}, bytes={stored:,}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.method.score(on_cpu(extract(self.model, images, self.method.needs)), self.state, self.size)


def on_cpu(output: Features) -> Features:
    """The pooled features and maps, on the CPU."""
    pooled = None if output.pooled is None else output.pooled.cpu()
    return Features(pooled=pooled, maps={name: map_.cpu() for name, map_ in output.maps.items()})


def save_anomaly(
    folder: Path, detector: AnomalyDetector, preprocessing: Preprocessing, **about: Any
) -> AnomalyManifest:
    """Write a fitted detector, without its network.

    Args:
        folder: where to write; it is made if it does not exist.
        detector: fitted.
        preprocessing: of the network.
        about: the fields of the manifest about the fit: ``false_alarms``, ``normal_images``, ``held_out``.

    Returns:
        The content of ``anomaly.json``.
    """
    tensors = {name: tensor.contiguous().clone() for name, tensor in detector.state.items()}
    tensors[PROBE] = probe(detector.model, preprocessing)
    sha256 = write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
    manifest = AnomalyManifest(
        method=detector.method.settings.model_dump(mode="json"),
        threshold=detector.threshold,
        preprocessing=preprocessing,
        sha256=sha256,
        **about,
    )
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def load_anomaly(folder: Path, model: nn.Module, *, allow_plugins: bool = False) -> AnomalyDetector:
    """A detector from its files and the network that it was fitted on, as it was trained, merged or with its deltas.

    Args:
        folder: that a run wrote.
        model: the timm model, in eval mode.
        allow_plugins: import a method outside this package that the file names. Importing runs code: allow it only for
            files that you trust.

    Returns:
        The detector, on the CPU.

    Raises:
        ExportError: a file is damaged, or the network gives other features than the one it was fitted on.
    """
    folder = Path(folder)
    manifest = read_checksummed(folder / MANIFEST, AnomalyManifest)
    tensors = safetensors.torch.load(read_checked(folder, TENSORS, manifest.sha256))
    expected = tensors.pop(PROBE)
    actual = probe(model, manifest.preprocessing)
    if actual.shape != expected.shape or not torch.allclose(actual, expected, rtol=1e-2, atol=1e-3):
        raise ExportError(f"{folder}: fitted on the features of another network")
    name = str(manifest.method.get("type"))
    if ":" in name and not allow_plugins:
        raise ExportError(f"{folder}: it needs the class {name!r}; pass allow_plugins=True if you trust it")
    settings = Registry("distill.transfer.anomaly", "AnomalyMethod").settings_of(name).model_validate(manifest.method)
    method = settings.component
    assert method is not None and issubclass(method, AnomalyMethod)
    size = manifest.preprocessing.input.size
    return AnomalyDetector(model, method(settings), tensors, manifest.threshold, size)  # type: ignore[arg-type]


@torch.no_grad()
def probe(model: nn.Module, preprocessing: Preprocessing) -> Tensor:
    """The pooled features [D] of a generated image, equal on every machine within rounding."""
    channels, height, width = preprocessing.input_size
    waves = torch.arange(channels * height * width, dtype=torch.float64).view(1, channels, height, width)
    device = next(model.parameters()).device
    pooled = extract(model, torch.sin(waves * 0.1).float().to(device), frozenset({"pooled"})).pooled
    assert pooled is not None
    return pooled[0].float().cpu()
