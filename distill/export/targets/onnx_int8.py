"""ONNX in int8, for ONNX Runtime: static QDQ, activations in 8 bits, weights in 8 or 7 bits per output channel.

Processors without VNNI add pairs of products in 16 bits, which overflows silently with weights of 8 bits. The session
option ``session.x64quantprecision=1`` selects kernels that do not; it is in the manifest, and ``distill.export.open``
sets it. It is no part of the file: another program that loads ``model.onnx`` must set it too, or take ``weights: 7``,
whose products do not overflow, at the cost of one bit. Verification shows the default session and the computation in
fp32 beside what is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from distill.export.artifact import ProgramManifest, read_artifact
from distill.export.opening import Opened, Run
from distill.export.targets.base import About, Session
from distill.export.targets.onnx import FILE, Onnx, run_onnx
from distill.export.targets.program import Converted, as_input
from distill.export.targets.quantized import QuantizedTarget, has_vnni

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PRECISE = {"session.x64quantprecision": "1"}
"""Session option of kernels without overflow. Processors with VNNI, and Arm's, ignore it."""
_BATCH = 16


class OnnxInt8(QuantizedTarget):
    """ONNX with int8 weights per output channel and uint8 activations, calibrated on training images."""

    class Settings(QuantizedTarget.Settings):
        type: Literal["onnx_int8"] = "onnx_int8"
        weights: Literal[8, 7] = Field(
            8, description="bits of the weights; 7: right without the session option too, and less exact"
        )

    title, folder, weights = "ONNX int8", "onnx-int8", FILE
    needs: ClassVar[Mapping[str, str]] = Onnx.needs
    extra = "onnx"
    settings: Settings

    def __init__(self, settings: Settings):
        if settings.weights == 7:
            self.title, self.folder = "ONNX int8, 7-bit weights", "onnx-int8-7bit"
        super().__init__(settings)

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        images = self.images(about).numpy()
        facts = Onnx(Onnx.Settings(input=self.settings.input)).convert(program, folder, about)
        model = onnx.load(folder / FILE)
        (name,) = (each.name for each in model.graph.input)
        # Otherwise a warning advises to optimize the graph first, which the exporter has done.
        model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")

        class Images(CalibrationDataReader):
            def __init__(self) -> None:
                self.batches: Iterator[np.ndarray] = iter(np.split(images, range(_BATCH, len(images), _BATCH)))

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(({name: batch} for batch in self.batches), None)

        quantize_static(
            model,
            folder / FILE,
            Images(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=self.settings.weights == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(folder / FILE)
        kept = [entry for entry in made.metadata_props if not entry.key.startswith("onnx.")]
        del made.metadata_props[:]
        made.metadata_props.extend(sorted(kept, key=lambda entry: entry.key))
        made.producer_name = "delta-distill"
        (folder / FILE).write_bytes(made.SerializeToString(deterministic=True))
        options = PRECISE if self.settings.weights == 8 else {}
        return Converted(opset=facts.opset, options=options, machine={"vnni": has_vnni()})

    def import_runtime(self) -> None:
        Onnx(Onnx.Settings()).import_runtime()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        return run_onnx(files[FILE], manifest.options, self.threads)

    def other_sessions(self, folder: Path) -> dict[str, Session]:
        manifest, files = read_artifact(folder)
        others: dict[str, Run] = {"in fp32": run_onnx(files[FILE], {}, self.threads, optimized=False)}
        if manifest.options:
            others["default session"] = run_onnx(files[FILE], {}, self.threads)
        return {name: self._session(run, manifest) for name, run in others.items()}

    def _session(self, run: Run, manifest: ProgramManifest) -> Session:
        about: tuple[Any, ...] = (manifest.input, manifest.classes, manifest.labels, manifest.preprocessing)
        exported = Opened(run, *about)
        return lambda images: exported(as_input(images, exported))
