"""RetinaNet (Lin et al., ICCV 2017, arXiv 1708.02002): dense anchors and the focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from augment.views import InputSpec
from distill.detection.detectors.base import Detector


class RetinaNet(Detector):
    """torchvision's RetinaNet on maps of stride 8 and more, and two coarser levels.

    Anchors of a level of stride s have the areas (4 s)², (4 s · 2^(1/3))² and (4 s · 2^(2/3))², and the shapes 1:2, 1:1
    and 2:1, which are the paper's for the strides 8 to 128. P6 and P7 come from P5, as in the authors' later code.
    """

    class Settings(Detector.Settings):
        type: Literal["retinanet"] = "retinanet"

    settings: Settings

    def extra_levels(self) -> ExtraFPNBlock:
        return LastLevelP6P7(self.settings.channels, self.settings.channels)

    def strides(self, of_maps: Sequence[int]) -> list[int]:
        return [*of_maps, 2 * of_maps[-1], 4 * of_maps[-1]]

    def smallest_box(self, stride: int) -> float:
        return 4 * stride / 2**0.5  # inside the smallest anchor, with an IoU of 0.5

    def build(self, pyramid: nn.Module, strides: Sequence[int], classes: int, spec: InputSpec) -> nn.Module:
        sizes = tuple(tuple(int(4 * stride * 2 ** (third / 3)) for third in range(3)) for stride in strides)
        own = self.settings
        return TorchvisionRetinaNet(
            pyramid,
            classes,
            **self.sizes(spec),
            anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),  # type: ignore[arg-type]
            score_thresh=own.score_threshold,
            nms_thresh=own.nms_threshold,
            detections_per_img=own.detections,
        )
