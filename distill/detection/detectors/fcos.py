"""FCOS (Tian et al., ICCV 2019, arXiv 1904.01355): a box from every position of the maps, without anchor shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from augment.base import error_at
from augment.views import InputSpec
from distill.detection.detectors.base import Detector

GROUPS = 32
"""Of the group norms in torchvision's head."""


class FCOS(Detector):
    """torchvision's FCOS on maps of stride 8 and more, and two coarser levels."""

    class Settings(Detector.Settings):
        type: Literal["fcos"] = "fcos"
        score_threshold: float = Field(0.2, ge=0, lt=1, description="detections with a lower score are dropped")
        nms_threshold: float = Field(
            0.6, gt=0, le=1, description="of two boxes of a category that overlap more (IoU), the worse is dropped"
        )

        @model_validator(mode="after")
        def _whole_groups(self) -> Self:
            if self.channels % GROUPS:
                raise error_at(
                    "channels", f"fcos normalizes {GROUPS} groups; {self.channels} is not a multiple of that"
                )
            return self

    settings: Settings

    def extra_levels(self) -> ExtraFPNBlock:
        return LastLevelP6P7(self.settings.channels, self.settings.channels)

    def strides(self, of_maps: Sequence[int]) -> list[int]:
        return [*of_maps, 2 * of_maps[-1], 4 * of_maps[-1]]

    def smallest_box(self, stride: int) -> float:
        return float(stride)  # a smaller box may hold no point of the map

    def build(self, pyramid: nn.Module, strides: Sequence[int], classes: int, spec: InputSpec) -> nn.Module:
        own = self.settings
        return TorchvisionFCOS(
            pyramid,
            classes,
            **self.sizes(spec),
            anchor_generator=AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides)),  # type: ignore[arg-type]
            score_thresh=own.score_threshold,
            nms_thresh=own.nms_threshold,
            detections_per_img=own.detections,
        )
