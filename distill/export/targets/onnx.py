"""ONNX, for ONNX Runtime and many others: one file with a dynamic batch. Opening it does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from distill.export.artifact import ProgramManifest
from distill.export.checksummed import ExportError
from distill.export.opening import Run
from distill.export.targets.base import About
from distill.export.targets.program import Converted, ProgramTarget

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.onnx"
BATCH = "batch"
LARGEST = 2**31 - 1
"""Bytes of a protocol buffer."""


class Onnx(ProgramTarget):
    """ONNX by torch's exporter, batch norms folded; labels and preprocessing are in its metadata."""

    class Settings(ProgramTarget.Settings):
        type: Literal["onnx"] = "onnx"
        dtype: Literal["float32", "float16"] = Field(
            "float32", description="of the stored weights; the computation is fp32, float16 halves the file"
        )

    title, folder, weights = "ONNX", "onnx", FILE
    needs: ClassVar[Mapping[str, str]] = {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"}
    extra = "onnx"
    settings: Settings

    def __init__(self, settings: Settings):
        if settings.dtype == "float16":
            self.title, self.folder = "ONNX, float16 weights", "onnx-float16"
            self.tolerance, self.agreement = 1e-2, 0.998
        super().__init__(settings)

    def convert(self, program: ExportedProgram, folder: Path, about: About) -> Converted:
        import torch

        from distill.export.trace import IMAGES, LOGITS

        size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        if size > LARGEST:
            raise ExportError(f"{self.title}: {size:,} bytes of weights, and one ONNX file holds at most {LARGEST:,}")
        exported = torch.onnx.export(
            program, dynamo=True, external_data=False, input_names=[IMAGES], output_names=[LOGITS], verbose=False
        )
        assert exported is not None
        proto: Any = exported.model_proto
        _strip(proto)
        _name_batch(proto)
        if self.settings.dtype == "float16":
            _halve(proto)
        proto.producer_name = "delta-distill"
        assert about.preprocessing is not None
        metadata = {"origin": about.origin, "preprocessing": about.preprocessing.model_dump_json()}
        if about.labels:
            metadata["labels"] = json.dumps(list(about.labels), ensure_ascii=False)
        for key, value in sorted(metadata.items()):
            proto.metadata_props.add(key=key, value=value)
        (folder / FILE).write_bytes(proto.SerializeToString(deterministic=True))
        return Converted(opset=next(entry.version for entry in proto.opset_import if not entry.domain))

    def import_runtime(self) -> None:
        import onnxruntime  # noqa: F401

    def load(self, files: Mapping[str, bytes], manifest: ProgramManifest) -> Run:
        return run_onnx(files[FILE], manifest.options, self.threads)


def run_onnx(data: bytes, options: Mapping[str, str], threads: int | None = None, optimized: bool = True) -> Run:
    """A function that runs an ONNX model on the CPU.

    Args:
        data: the file.
        options: entries of the session's configuration.
        threads: of the session; None: one for each core.
        optimized: whether nodes are fused; False: a quantized model is computed in fp32, with rounding in between.

    Returns:
        The function, which runs one batch.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in options.items():
        settings.add_session_config_entry(key, value)
    if not optimized:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {name: images})[0]

    return run


def _halve(proto: Any) -> None:
    """Store weights in fp16, each with a cast to fp32, which runtimes compute once, at load.

    Computing in fp16 too would round every activation: 1 % of the images get another class, and CPUs gain nothing.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max())
        if largest > np.finfo(np.float16).max:
            raise ExportError(f"ONNX with dtype: float16 cannot hold {tensor.name}, whose largest value is {largest:g}")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _strip(proto: Any) -> None:
    """Remove what the exporter notes about the origin of every part, which includes paths and stack traces."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        parts = [*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output]
        for part in [graph, *parts]:
            del part.metadata_props[:]
            part.doc_string = ""
        graphs += [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]


def _name_batch(proto: Any) -> None:
    """Name the dynamic dimension; the exporter gives it a symbol such as ``s77``."""
    graph = proto.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if symbol and dimension.dim_param == symbol:
                dimension.dim_param = BATCH
