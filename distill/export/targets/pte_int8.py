"""ExecuTorch in int8: XNNPACK's quantizer, with weights per output channel and activations after their ReLU6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from distill.export.artifact import ProgramManifest
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.executorch import FILE, ExecuTorch, quietly
from distill.export.targets.program import Converted, FixedBatch
from distill.export.targets.quantized import QuantizedTarget, has_vnni

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CLIPS = {"aten.hardtanh.default", "aten.hardtanh_.default", "aten.relu6.default", "aten.relu6_.default"}


class ExecuTorchInt8(QuantizedTarget, FixedBatch):
    """A program of ExecuTorch with int8 weights and activations, computed by XNNPACK."""

    class Settings(QuantizedTarget.Settings, FixedBatch.Settings):
        type: Literal["pte_int8"] = "pte_int8"

    title, folder, weights = "ExecuTorch int8", "pte-int8", FILE
    needs: ClassVar[Mapping[str, str]] = ExecuTorch.needs
    extra = "executorch"
    settings: Settings

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        images = self.images(about)
        with quietly():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
                XNNPACKQuantizer,
                get_symmetric_quantization_config,
            )
            from executorch.exir import to_edge_transform_and_lower
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

            class Quantizer(XNNPACKQuantizer):
                def annotate(self, model: Any) -> Any:
                    model = super().annotate(model)
                    move_ranges_behind_clips(model.graph)
                    return model

            quantizer = Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
            size = self.batch or 1
            with torch.no_grad():
                prepared = prepare_pt2e(program.module(), quantizer)
                for start in range(0, len(images) - size + 1, size):
                    prepared(images[start : start + size])
                quantized = torch.export.export(convert_pt2e(prepared), (torch.zeros_like(images[:size]),))
            lowered = to_edge_transform_and_lower(quantized, partitioner=[XnnpackPartitioner()]).to_executorch()
        (folder / FILE).write_bytes(lowered.buffer)
        return Converted(machine={"vnni": has_vnni()})

    def import_runtime(self) -> None:
        ExecuTorch(ExecuTorch.Settings()).import_runtime()

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        plain = ExecuTorch(ExecuTorch.Settings(batch=self.settings.batch))
        plain.threads = self.threads
        return plain.load(files, manifest)


def move_ranges_behind_clips(graph: torch.fx.Graph) -> None:
    """Observe a layer's output behind the ReLU6 that alone reads it, not before.

    The quantizer fuses a conv with a ReLU but not with a ReLU6, whose input has a far wider range than its output; most
    of the 256 steps would be spent on numbers that are clipped.

    Args:
        graph: with annotations, which are changed.
    """
    for node in graph.nodes:
        if node.op != "call_function" or str(node.target) not in _CLIPS:
            continue
        layer = node.args[0]
        annotation = layer.meta.get("quantization_annotation")
        if len(layer.users) != 1 or annotation is None or annotation.output_qspec is None or not _is_layer(layer):
            continue
        spec, annotation.output_qspec = annotation.output_qspec, None
        own = type(annotation)(output_qspec=spec, _annotated=True)
        node.meta["quantization_annotation"] = own


def _is_layer(node: torch.fx.Node) -> bool:
    return str(node.target).startswith(("aten.conv", "aten.linear", "aten.addmm"))
