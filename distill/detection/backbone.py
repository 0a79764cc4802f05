"""The backbone of a detector: a timm network, frozen, with deltas, or trained in full, and a feature pyramid on it.

Channels and strides of the maps come from timm's ``feature_info``, so any network that gives maps can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from augment.base import UserError
from distill.detection.errors import DetectionError
from distill.detection.settings import DetectorBackboneSettings
from distill.export.delta.io import read_delta
from distill.models.hub import local_folder
from distill.models.network import Network
from distill.models.student import Student
from distill.models.teacher_settings import TeacherNetworkSettings
from distill.run.folder import CONFIG, read_tree
from distill.run.from_delta import student_tree

MAPS = frozenset({"maps"})


@dataclass(frozen=True)
class Level:
    """A map that the pyramid reads."""

    stage: str
    """timm's name."""
    channels: int
    stride: int
    """Pixels of the input for one of the map."""


def resolved(settings: DetectorBackboneSettings) -> TeacherNetworkSettings:
    """The network that settings name, with the delta file that is merged into it, if any.

    Raises:
        DetectionError: ``start`` holds neither a finished run's export, nor a delta file, nor a timm folder.
    """
    own = {} if settings.network is None else settings.network.model_dump()
    if settings.start is None:
        return TeacherNetworkSettings.model_validate(own)
    start = local_folder(settings.start)
    exported = (start / "export" / "delta", start / "export" / "merged")
    delta = next((folder for folder in (start, exported[0]) if (folder / "delta.json").is_file()), None)
    merged = next((folder for folder in (start, exported[1]) if (folder / "config.json").is_file()), None)
    if delta is None and merged is None:
        what = "a run that has exported nothing" if (start / CONFIG).is_file() else "neither a run, a delta file nor a"
        raise DetectionError(f"backbone.start: {start} is {what}{'' if what.endswith('nothing') else ' timm folder'}")
    if delta is None:
        return TeacherNetworkSettings.model_validate({**own, "model": f"local-dir:{merged}"})
    if not own:
        own = _network_of(start, delta)
    return TeacherNetworkSettings.model_validate({**own, "delta": delta})


def _network_of(start: Path, delta: Path) -> dict[str, Any]:
    """The backbone of a delta file: as the run's config names it, else as the file does."""
    if (start / CONFIG).is_file():
        network = read_tree(start).get("student", {}).get("network")
        if isinstance(network, dict):
            return dict(network)
    try:
        return dict(student_tree(read_delta(delta)[0], moved=False)["network"])
    except UserError as error:
        raise DetectionError(f"backbone.network: {error}") from error


def levels_of(network: Network, first_stride: int, stages: tuple[str, ...] | None) -> list[Level]:
    """The maps that a pyramid reads, shallow to deep.

    Args:
        network: any timm network with ``feature_info``.
        first_stride: of the shallowest map, if ``stages`` is None: the deepest stage of each stride from this one on.
        stages: names of timm's stages to read.

    Returns:
        One for each map.

    Raises:
        DetectionError: the network has no such stage or stride; the text lists what it has.
    """
    info: Any = getattr(network.model, "feature_info", None)
    if not info:
        raise DetectionError(f"backbone: {network.architecture} declares no maps (feature_info)")
    every = [Level(each["module"], each["num_chs"], each["reduction"]) for each in info]
    known = ", ".join(f"{level.stage} (stride {level.stride})" for level in every)
    if stages is not None:
        by_name = {level.stage: level for level in every}
        for n, stage in enumerate(stages):
            if stage not in by_name:
                raise DetectionError(f"detector.levels.{n}: {network.architecture} has no {stage}, only {known}")
        return sorted((by_name[stage] for stage in stages), key=every.index)
    deepest = {level.stride: level for level in every}
    chosen = [level for stride, level in sorted(deepest.items()) if stride >= first_stride]
    if not chosen:
        raise DetectionError(
            f"detector.levels: {network.architecture} has no map of stride {first_stride} or more, only {known}; name"
            " some of these"
        )
    return chosen


class Pyramid(nn.Module):
    """``forward(images [B, 3, H, W], normalized) → {level: [B, channels, h, w]}``.

    Args:
        student: gives maps; its own rules for what is trained hold.
        levels: the maps that are read.
        channels: of every map of the pyramid.
        extra: further, coarser levels; None: there are none.
    """

    def __init__(self, student: Student, levels: list[Level], channels: int, extra: ExtraFPNBlock | None):
        super().__init__()
        self.student = student
        self.levels = levels
        self.out_channels = channels
        self.fpn = FeaturePyramidNetwork([level.channels for level in levels], channels, extra_blocks=extra)

    def extra_repr(self) -> str:
        shown = ", ".join(f"{level.stage}: {level.channels} channels, stride {level.stride}" for level in self.levels)
        return f"{shown}; channels={self.out_channels}"

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.student(x).maps
        return self.fpn({str(n): maps[level.stage] for n, level in enumerate(self.levels)})


def make_student(network: Network, settings: DetectorBackboneSettings, seed: int) -> Student:
    """The student that gives a detector its maps.

    Args:
        network: without classifier; changed in place.
        settings: what of it is trained.
        seed: of the deltas' initial values.

    Returns:
        The student, which computes maps.
    """
    torch.manual_seed(seed)
    return Student(network, settings, MAPS)
