"""Traces a trained student, as it runs in evaluation, into a ``torch.export`` program, from which formats are made."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from augment.base import UserError, described
from distill.deltas.attach import merge_weights
from distill.export.checksummed import ExportError
from distill.export.manifest import Preprocessing

IMAGES, LOGITS = "images", "logits"
"""Names of the program's input and output."""


class Exportable(nn.Module):
    """The module that is traced: a network, and before it the normalization if its input are pixels.

    Args:
        network: images [N, C, H, W], normalized → logits [N, K].
        preprocessing: mean and standard deviation of each channel.
        pixels: the input is [N, H, W, C] uint8 instead.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, pixels: bool):
        super().__init__()
        self.network, self.pixels = network, pixels
        if pixels:
            self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1))
            self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.pixels:
            images = (images.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.network(images).float()


def live_copy(model: nn.Module) -> nn.Module:
    """A copy of a model as it runs in evaluation, on the CPU, weight deltas merged; structural deltas stay modules."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    merge_weights(model)
    return model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def trace(
    model: nn.Module,
    preprocessing: Preprocessing,
    *,
    pixels: bool = False,
    batch: int | None = None,
) -> ExportedProgram:
    """Trace a model.

    The program holds no image (its example input is zeros), and neither paths nor stack traces of this machine.

    Args:
        model: a timm model, with or without deltas; it is not changed.
        preprocessing: gives the size of the input, which the program fixes.
        pixels: the input is [N, H, W, C] uint8, which the program normalizes; else [N, C, H, W] fp32, normalized.
        batch: fixed number of images; None: any.

    Returns:
        The program: ``images`` → logits [N, K] fp32.

    Raises:
        ExportError: the model cannot be traced.
    """
    network = live_copy(model)
    channels, height, width = preprocessing.input_size
    shape = (height, width, channels) if pixels else (channels, height, width)
    # An example of one image would fix the batch at 1.
    example = torch.zeros(batch or 2, *shape, dtype=torch.uint8 if pixels else torch.float32)
    dynamic = None if batch else {IMAGES: {0: Dim("batch")}}
    try:
        with torch.no_grad():
            module = Exportable(network, preprocessing, pixels).eval()
            program = torch.export.export(module, (example,), dynamic_shapes=dynamic)
    except Exception as error:  # a network's own code may raise anything under the tracer
        raise ExportError(f"the student cannot be traced by torch.export: {_shortened(error)}") from error
    for graph in _graphs(program):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
            node.meta.pop("from_node", None)
    return program


def classes_of(program: ExportedProgram) -> int:
    """Number of logits of a traced model."""
    output = next(node for node in reversed(program.graph.nodes) if node.op == "output")
    return int(output.args[0][0].meta["val"].shape[1])  # type: ignore[union-attr,index]


def _graphs(program: ExportedProgram) -> Iterator[fx.Graph]:
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            yield module.graph


@contextmanager
def converting(title: str, program: ExportedProgram) -> Iterator[None]:
    """Raise an error of a converter as an ``ExportError`` that names format, operator and layer.

    Converters change the level and the handlers of the root logger, which are as before afterwards.

    Args:
        title: of the format.
        program: that is converted; an operator is found by its name in the text of the error.
    """
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if (lacking := _operator_of_error(error, program)) is not None:
            operator, layer = lacking
            raise ExportError(f"{title} cannot hold {operator}, which layer {layer!r} of the student uses") from error
        raise ExportError(f"{title}: the conversion failed: {_shortened(error)}") from error
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _operator_of_error(error: BaseException, program: ExportedProgram) -> tuple[str, str] | None:
    """The operator that a converter's error names, and its layer; the innermost cause names it most exactly."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.insert(0, str(cause))
        cause = cause.__cause__ or cause.__context__
    # A converter may name an operator of the program, or one that it is decomposed into.
    for form in (program, program.run_decompositions()):
        nodes = [node for graph in _graphs(form) for node in graph.nodes if operator_of(node)]
        for text in texts:
            for node in nodes:
                name = operator_of(node)
                base, _, overload = name.rpartition(".")
                spelled = (re.escape(name), re.escape(f"op='{base}', overload='{overload}'"), base.replace(".", "::"))
                if any(re.search(rf"(?<!\w){each}(?!\w)", text) for each in spelled):
                    return name, layer_of(node)
    # ONNX decomposes further: prims.bessel_j0 of aten.special_bessel_j0.
    if lacking := re.search(r"op='\w+\.(\w+)'", "\n".join(texts)):
        for node in (node for graph in _graphs(program) for node in graph.nodes):
            if lacking[1] in operator_of(node):
                return operator_of(node), layer_of(node)
    return None


def _shortened(error: Exception) -> str:
    """The beginning of a converter's text, which may have pages and colors of the terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", described(error)).strip()
    return text if len(text) <= 400 else f"{text[:400]} …"


def operator_of(node: fx.Node) -> str:
    """Name of a node's operator, ``aten.conv2d.default``; empty if it calls none."""
    return str(node.target) if isinstance(node.target, torch._ops.OpOverload) else ""


def layer_of(node: fx.Node) -> str:
    """Name of the innermost module of the student that a node comes from."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return (paths[-1] if paths else "").removeprefix("network").removeprefix(".") or "the network itself"
