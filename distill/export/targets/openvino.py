"""OpenVINO, for processors and accelerators of Intel: a graph and its weights, with a dynamic batch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, ProgramTarget

if TYPE_CHECKING:
    from torch.export import ExportedProgram

GRAPH, WEIGHTS = "model.xml", "model.bin"


def openvino() -> Any:
    """The package, imported without its telemetry, which would report every import and conversion to its makers.

    Without ``openvino_telemetry`` the package takes its own stub. If it was imported before, that was not here.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import openvino

    return openvino


@cache
def core() -> Any:
    """The runtime, one for the process.

    Each runtime replaces the stack of signal handlers by its own and puts the former one back when it is deleted. Two
    that are not deleted in reverse order leave a stack that does not exist, and the next signal ends the process.
    """
    return openvino().Core()


class OpenVino(ProgramTarget):
    """A model of OpenVINO; nothing is sent to its makers. ``weights: float16`` stores fp16 and computes in fp32."""

    class Settings(ProgramTarget.Settings):
        type: Literal["openvino"] = "openvino"
        weights: Literal["float32", "float16"] = Field(
            "float32", description="of the stored weights; the computation is fp32"
        )

    title, folder, weights = "OpenVINO", "openvino", WEIGHTS
    needs: ClassVar[Mapping[str, str]] = {"openvino": "openvino"}
    extra = "openvino"
    settings: Settings

    def __init__(self, settings: Settings):
        if settings.weights == "float16":
            self.title, self.folder = "OpenVINO, float16 weights", "openvino-float16"
            self.tolerance, self.agreement = 1e-2, 0.998
        super().__init__(settings)

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        from distill.export.trace import IMAGES, LOGITS

        package = openvino()
        model = package.convert_model(program)
        (example,) = (node.meta["val"] for node in program.graph.nodes if node.name == IMAGES)
        model.reshape({IMAGES: package.PartialShape([-1, *map(int, example.shape[1:])])})
        model.outputs[0].get_tensor().set_names({LOGITS})
        package.save_model(model, folder / GRAPH, compress_to_fp16=self.settings.weights == "float16")
        return Converted()

    def import_runtime(self) -> None:
        openvino()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        model = core().read_model(model=files[GRAPH], weights=files[WEIGHTS])
        # Processors with bf16 would round by default.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", **manifest.options}
        if self.threads is not None:
            options["INFERENCE_NUM_THREADS"] = self.threads
        compiled = core().compile_model(model, "CPU", options)

        def run(images: np.ndarray) -> np.ndarray:
            return compiled([images])[0].copy()

        return run
