"""The interface of detectors: torchvision's heads on a feature pyramid.

A minimal one of your own, named in a config as ``detector: {type: "my_package.detect:Mine"}``::

    class Mine(Detector):
        class Settings(Detector.Settings):
            type: str

        first_stride = 8

        def build(self, pyramid, strides, classes, spec):
            return SSDLike(pyramid, classes, spec.mean, spec.std)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from torch import nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

import augment.base
from augment.base import Component, error_at
from augment.views import InputSpec


class Detector(Component):
    """Builds a detector. Labels are 1 … K of K categories; 0 is the background.

    Class attributes:
        first_stride: of the shallowest map that it reads by default.
    """

    class Settings(augment.base.Settings):
        type: str
        channels: int = Field(256, ge=8, le=1024, description="of every map of the feature pyramid")
        levels: tuple[str, ...] | None = Field(
            None, min_length=1, description="timm's names of the maps to read; default: the deepest of each stride"
        )
        min_size: int = Field(800, ge=32, le=4096, description="shorter side in pixels that images are resized to")
        max_size: int = Field(1333, ge=32, le=8192, description="largest longer side in pixels")
        score_threshold: float = Field(0.05, ge=0, lt=1, description="detections with a lower score are dropped")
        nms_threshold: float = Field(
            0.5, gt=0, le=1, description="of two boxes of a category that overlap more (IoU), the worse is dropped"
        )
        detections: int = Field(100, ge=1, le=1000, description="most detections in an image")

        @model_validator(mode="after")
        def _sizes_in_order(self) -> Self:
            if self.max_size < self.min_size:
                raise error_at("max_size", f"{self.max_size} is less than min_size, {self.min_size}")
            return self

    first_stride: ClassVar[int] = 8
    settings: Settings

    def __init__(self, settings: Settings):
        self.settings = settings

    def extra_levels(self) -> ExtraFPNBlock | None:
        """Levels of the pyramid beyond those of the backbone; None: there are none."""
        return None

    def strides(self, of_maps: Sequence[int]) -> list[int]:
        """Strides of all levels, from those of the backbone's maps."""
        return list(of_maps)

    def smallest_box(self, stride: int) -> float:
        """Side in pixels of the smallest square that training matches well, with a shallowest map of this stride.

        Smaller objects are hardly found. 0, the default: it is not known, and nothing is said about small objects.
        """
        return 0.0

    def build(self, pyramid: nn.Module, strides: Sequence[int], classes: int, spec: InputSpec) -> nn.Module:
        """The detector, with torchvision's interface: ``forward(images, targets)`` gives losses or detections.

        Args:
            pyramid: ``out_channels``, and images [B, C, H, W] → {level: map}.
            strides: of its levels.
            classes: number of categories, and the background.
            spec: mean and std that images in [0, 1] are normalized with.

        Returns:
            A module with an attribute ``backbone``, the pyramid.
        """
        raise NotImplementedError

    def sizes(self, spec: InputSpec) -> dict[str, Any]:
        """Arguments of torchvision's detectors about the images."""
        own = self.settings
        return {
            "min_size": own.min_size,
            "max_size": own.max_size,
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
        }
