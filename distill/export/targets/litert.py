"""LiteRT, formerly TensorFlow Lite, for phones and microcontrollers: one ``.tflite`` file with a fixed batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, FixedBatch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.tflite"


class LiteRt(FixedBatch):
    """A model of LiteRT. Opening it does not import torch. Its converter may need an older torch than the newest."""

    class Settings(FixedBatch.Settings):
        type: Literal["litert"] = "litert"

    title, folder, weights = "LiteRT", "litert", FILE
    needs: ClassVar[Mapping[str, str]] = {"litert_torch": "litert-torch", "ai_edge_litert": "ai-edge-litert"}
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        import litert_torch
        import torch

        from distill.export.trace import IMAGES

        (example,) = (node.meta["val"] for node in program.graph.nodes if node.name == IMAGES)
        zeros = torch.zeros(tuple(map(int, example.shape)), dtype=example.dtype)
        litert_torch.convert(program.module(check_guards=False), (zeros,)).export(str(folder / FILE))
        return Converted()

    def import_runtime(self) -> None:
        import ai_edge_litert.interpreter  # noqa: F401

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=files[FILE], num_threads=self.threads)
        interpreter.allocate_tensors()
        (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

        def run(images: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(given["index"], images)
            interpreter.invoke()
            return interpreter.get_tensor(result["index"])

        return run
