"""The base class of int8 programs: the images that their ranges are calibrated on, and what verification accepts."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing
from distill.export.targets.base import About
from distill.export.targets.program import ProgramTarget, pixels_of

if TYPE_CHECKING:
    from torch import Tensor, nn

FEWEST = 8
"""Images to calibrate on."""


class QuantizedTarget(ProgramTarget):
    """A program with int8 weights and activations, whose ranges are those of real training images.

    Its logits are not those of the student: verification demands a share of equal top-1 classes.
    """

    class Settings(ProgramTarget.Settings):
        agreement: float = Field(
            0.97, ge=0, le=1, description="smallest share of images with the student's top-1 class; fewer fail the run"
        )

    calibrates: ClassVar[bool] = True
    tolerance = 1.0
    settings: Settings

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.agreement = settings.agreement

    def write(self, model: nn.Module, folder: Path, about: About) -> int:
        images = None if about.calibration is None else about.calibration.images
        self._check_images(images, about.preprocessing or Preprocessing.of(model))
        return super().write(model, folder, about)

    def images(self, about: About) -> Tensor:
        """The images of the calibration, as the program's input."""
        assert about.calibration is not None and about.preprocessing is not None
        images = about.calibration.images.contiguous()
        return pixels_of(images, about.preprocessing) if self.settings.input == "uint8" else images

    def _check_images(self, images: Tensor | None, preprocessing: Preprocessing) -> None:
        if images is None:
            raise ExportError(f"{self.title}: int8 needs training images for its ranges, and there are none")
        if len(images) < FEWEST:
            text = f"{len(images)} image(s) to calibrate on; give {FEWEST} or more (export.calibration_images)"
            raise ExportError(f"{self.title}: {text}")
        if (size := tuple(images.shape[1:])) != tuple(preprocessing.input_size):
            expected = " x ".join(map(str, preprocessing.input_size))
            given = " x ".join(map(str, size))
            raise ExportError(
                f"{self.title}: the images to calibrate on are {given}, the student's input is {expected}"
            )
        if not images.isfinite().all():
            raise ExportError(f"{self.title}: the images to calibrate on have numbers that are not finite")


def has_vnni() -> bool | str:
    """Whether this processor adds products of int8 in 32 bits (VNNI, or Arm's); ``unknown`` where it does not say."""
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    return "vnni" in flags
