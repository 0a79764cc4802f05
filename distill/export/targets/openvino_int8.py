"""OpenVINO in int8, quantized by NNCF without overflow on any processor."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.openvino import GRAPH, WEIGHTS, OpenVino, openvino
from distill.export.targets.program import Converted
from distill.export.targets.quantized import QuantizedTarget, has_vnni

if TYPE_CHECKING:
    from torch.export import ExportedProgram


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
        images = self.images(about).numpy()
        OpenVino(OpenVino.Settings(input=self.settings.input)).convert(program, folder, about)
        package = openvino()
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

        logger = logging.getLogger("nncf")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with redirect_stdout(io.StringIO()):  # progress bars
                quantized = nncf.quantize(
                    package.Core().read_model(folder / GRAPH),
                    nncf.Dataset([images[index : index + 1] for index in range(len(images))]),
                    subset_size=len(images),
                    advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
                )
        finally:
            logger.setLevel(level)
        (folder / GRAPH).unlink()
        (folder / WEIGHTS).unlink()
        package.save_model(quantized, folder / GRAPH, compress_to_fp16=False)
        return Converted(machine={"vnni": has_vnni()})

    def import_runtime(self) -> None:
        OpenVino(OpenVino.Settings()).import_runtime()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        plain = OpenVino(OpenVino.Settings())
        plain.threads = self.threads
        return plain.load(files, manifest)
