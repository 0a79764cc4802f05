"""Faster R-CNN (Ren et al., NeurIPS 2015, arXiv 1506.01497) with a feature pyramid (Lin et al., arXiv 1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from augment.views import InputSpec
from distill.detection.detectors.base import Detector


class FasterRCNN(Detector):
    """torchvision's Faster R-CNN on maps of stride 4 and more, and one coarser level for proposals.

    Anchors of a level of stride s have the area (8 s)², the paper's for the strides 4 to 64.
    """

    class Settings(Detector.Settings):
        type: Literal["faster_rcnn"] = "faster_rcnn"

    first_stride: ClassVar[int] = 4
    settings: Settings

    def extra_levels(self) -> ExtraFPNBlock:
        return LastLevelMaxPool()

    def strides(self, of_maps: Sequence[int]) -> list[int]:
        return [*of_maps, 2 * of_maps[-1]]

    def smallest_box(self, stride: int) -> float:
        return 8 * stride / 2**0.5  # inside the smallest anchor, with an IoU of 0.5

    def build(self, pyramid: nn.Module, strides: Sequence[int], classes: int, spec: InputSpec) -> nn.Module:
        own = self.settings
        pooled = [str(number) for number in range(len(strides) - 1)]
        return TorchvisionFasterRCNN(
            pyramid,
            classes,
            **self.sizes(spec),
            rpn_anchor_generator=AnchorGenerator(
                tuple((8 * stride,) for stride in strides),  # type: ignore[arg-type]
                ((0.5, 1.0, 2.0),) * len(strides),  # type: ignore[arg-type]
            ),
            box_roi_pool=MultiScaleRoIAlign(pooled, output_size=7, sampling_ratio=2),
            box_score_thresh=own.score_threshold,
            box_nms_thresh=own.nms_threshold,
            box_detections_per_img=own.detections,
        )
