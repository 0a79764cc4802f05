"""OpenVINO in int8, quantized by NNCF without overflow on any processor."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.openvino import GRAPH, WEIGHTS, OpenVino, openvino
from distill.export.targets.program import Converted
from distill.export.targets.quantized import QuantizedTarget, has_vnni

if TYPE_CHECKING:
    from torch.export import ExportedProgram

IMAGES, QUANTIZED = "images.npy", "quantized"
"""Input and output of the fresh process."""


class OpenVinoInt8(QuantizedTarget):
    """A model of OpenVINO with int8 weights and activations.

    Weights use 7 of their 8 bits (NNCF's ``overflow_fix: enable``), since processors without VNNI add pairs of
    products in 16 bits.
    """

    class Settings(QuantizedTarget.Settings):
        type: Literal["openvino_int8"] = "openvino_int8"

    title, folder, weights = "OpenVINO int8", "openvino-int8", WEIGHTS
    needs: ClassVar[Mapping[str, str]] = {**OpenVino.needs, "nncf": "nncf"}
    extra = "openvino"
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        from distill.export.verify import fresh_process

        with tempfile.TemporaryDirectory(prefix="distill-") as name:
            work = Path(name)
            OpenVino(OpenVino.Settings(input=self.settings.input)).convert(program, work, about)
            np.save(work / IMAGES, self.images(about).numpy())
            with fresh_process(work, __name__):
                pass
            for file in (GRAPH, WEIGHTS):
                shutil.copyfile(work / QUANTIZED / file, folder / file)
        return Converted(machine={"vnni": has_vnni()})

    def import_runtime(self) -> None:
        OpenVino(OpenVino.Settings()).import_runtime()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        plain = OpenVino(OpenVino.Settings())
        plain.threads = self.threads
        return plain.load(files, manifest)


def _quantize(work: Path) -> None:
    """What the fresh process does: quantize the model of a folder by its images.

    NNCF has several runtimes at once, see :func:`distill.export.targets.openvino.core`, and replaces functions of
    torch.
    """
    package = openvino()
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    images = np.load(work / IMAGES)
    quantized = nncf.quantize(
        package.Core().read_model(work / GRAPH),
        nncf.Dataset([images[index : index + 1] for index in range(len(images))]),
        subset_size=len(images),
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )
    package.save_model(quantized, work / QUANTIZED / GRAPH, compress_to_fp16=False)


if __name__ == "__main__":
    _quantize(Path(sys.argv[1]))
