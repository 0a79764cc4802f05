"""A model's tensors by part: those of the deltas, and those of backbone and head under timm's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from distill.deltas.attach import deltas
from distill.deltas.base import DeltaError, StructuralDelta, tensor_bytes
from distill.deltas.sites import inside
from distill.deltas.statistics import REPLACED, Statistics


def delta_state(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of all deltas: ``<site>.<order on its layer>.<name>``, e.g. ``blocks.0.attn.qkv[q].0.A``."""
    return {f"{site.key}.{name}": tensor for site in deltas(model) for name, tensor in site.delta.state_dict().items()}


def replaced_state(model: nn.Module) -> dict[str, Tensor]:
    """Batch-norm statistics that replace the network's own, under the names of these."""
    return {
        f"{site.name}.{buffer}": getattr(site.delta, own)
        for site in deltas(model)
        if isinstance(site.delta, Statistics)
        for buffer, own in REPLACED.items()
    }


def load_exactly(targets: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Copy ``state`` into ``targets`` in place, after checking that names, shapes and dtypes agree exactly.

    Args:
        targets: name → the tensor to overwrite.
        state: name → its new values.
        what: what ``state`` is, for the error's text.

    Raises:
        DeltaError: they do not agree; the text lists the tensors. Nothing is changed.
    """
    problems = [f"missing {name}" for name in targets if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in targets]
    for name, target in targets.items():
        if name in state and (state[name].shape, state[name].dtype) != (target.shape, target.dtype):
            problems.append(f"{name} is {_describe(state[name])}, expected {_describe(target)}")
    if problems:
        raise DeltaError(f"the {what} does not fit this model:\n  " + "\n  ".join(problems))
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(state[name])


def delta_bytes(model: nn.Module) -> int:
    """Bytes of all tensors of all deltas, without the head."""
    return tensor_bytes(delta_state(model).values())


def backbone_state(model: nn.Module, head: Sequence[str] = ()) -> dict[str, Tensor]:
    """Parameters and buffers without deltas and head, under the names they had before any delta was attached."""
    return {name: tensor for name, tensor in whole_state(model).items() if not inside(name, head)}


def head_state(model: nn.Module, head: Sequence[str]) -> dict[str, Tensor]:
    """The classifier's tensors, before any delta on it."""
    return {name: tensor for name, tensor in whole_state(model).items() if inside(name, head)}


def whole_state(model: nn.Module, keep_vars: bool = False) -> dict[str, Tensor]:
    """Backbone and head together: the state dict that the model has without deltas; see ``Module.state_dict``."""
    structural = [site.name for site in deltas(model) if isinstance(site.delta, StructuralDelta)]
    state = {}
    for name, tensor in model.state_dict(keep_vars=keep_vars).items():
        layer, changed, rest = name.rpartition("parametrizations.")
        if changed and rest.endswith(".original"):
            name = layer + rest.removesuffix(".original")
        elif changed or inside(name, structural):
            continue
        state[name] = tensor
    return state


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
