"""Core ML, for devices of Apple: an ``.mlpackage``, which can be written on any system and runs on macOS."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from distill.export.artifact import ProgramManifest, as_files
from distill.export.checksummed import ExportError
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, FixedBatch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PACKAGE = "model.mlpackage"
FILE = f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"


class CoreMl(FixedBatch):
    """A model of Core ML. Elsewhere than on macOS its outputs are not compared with the student's."""

    class Settings(FixedBatch.Settings):
        type: Literal["coreml"] = "coreml"
        input: Literal["float"] = "float"  # it takes no uint8 tensors
        precision: Literal["float32", "float16"] = Field("float16", description="of weights and computation")

    title, folder, weights = "Core ML", "coreml", FILE
    tolerance, agreement = 1e-2, 0.998
    needs: ClassVar[Mapping[str, str]] = {"coremltools": "coremltools"}
    settings: Settings

    def elsewhere(self) -> str | None:
        return None if platform.system() == "Darwin" else "Core ML runs on macOS alone"

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        from distill.export.trace import LOGITS

        tools = _tools()
        precision = tools.precision.FLOAT16 if self.settings.precision == "float16" else tools.precision.FLOAT32
        model = tools.convert(
            program.run_decompositions({}),
            outputs=[tools.TensorType(name=LOGITS)],
            compute_precision=precision,
            skip_model_load=True,
        )
        model.save(str(folder / PACKAGE))
        return Converted()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        if (reason := self.elsewhere()) is not None:
            raise ExportError(f"{self.title}: {reason}")
        from distill.export.trace import IMAGES, LOGITS

        with as_files(files) as folder:
            model = _tools().models.MLModel(str(folder / PACKAGE))

        def run(images: np.ndarray) -> np.ndarray:
            return model.predict({IMAGES: images})[LOGITS]

        return run


def _tools() -> Any:
    """The package, without its warnings at import that it was not tested with these versions; no user can change it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools
