"""Finds the parts of two networks that compute the same: modules of one name, class, configuration and frozen state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

METHODS = ("_pos_embed",)
"""Methods of timm's transformers that compute between two modules; they are compared as modules are."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_ABSENT = object()


@dataclass(frozen=True)
class Part:
    """A method of a module that computes the same in two networks: ``forward``, or one of ``METHODS``."""

    name: str
    """Of the module."""
    method: str
    module: nn.Module
    reads: tuple[nn.Module, ...]
    """All modules whose state it depends on."""


def equal_parts(first: nn.Module, second: nn.Module, name: str = "") -> Iterator[tuple[Part, Part]]:
    """Find the largest equal parts of two networks. A container is replaced by its children.

    A forward may call a container's children one by one, as timm's ``forward_intermediates`` does. Training flags are
    not compared, since they change.

    Args:
        first: a network, or a module inside it.
        second: the other network, or its module of the same name.
        name: of these modules; empty for the networks.

    Returns:
        Pairs of a part of ``first`` and the equal one of ``second``.
    """
    container = isinstance(first, nn.Sequential) or type(first).forward is nn.Module.forward
    if not container and _same(first, second):
        yield tuple(Part(name, "forward", module, tuple(module.modules())) for module in (first, second))  # type: ignore[misc]
        return
    for method in METHODS:
        reads = _reads(first, second, method)
        if reads is not None:
            yield tuple(Part(name, method, module, read) for module, read in zip((first, second), zip(*reads)))  # type: ignore[misc]
    for child, module in first.named_children():
        other = second._modules.get(child)
        if other is not None and other is not module:
            yield from equal_parts(module, other, f"{name}.{child}" if name else child)


def _same(first: nn.Module, second: nn.Module, below: bool = False) -> bool:
    """Whether both compute the same. Modules below the top one must have no hooks, which would not be called."""
    if type(first) is not type(second) or isinstance(first, torch.jit.ScriptModule):
        return False
    if below and (_hooked(first) or _hooked(second)):
        return False
    mine, other = ([(key, own) for key, own in vars(m).items() if key not in _OF_EVERY_MODULE] for m in (first, second))
    return (
        _equal(dict(mine), dict(other))
        and _equal(first._parameters, second._parameters)
        and _equal(first._buffers, second._buffers)
        and first._modules.keys() == second._modules.keys()
        and all(_same_child(child, second._modules[name]) for name, child in first._modules.items())
    )


def _same_child(first: nn.Module | None, second: nn.Module | None) -> bool:
    if first is None or second is None:
        return first is second
    return _same(first, second, below=True)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _equal(first: Any, second: Any) -> bool:
    """Whether two attributes have the same effect on what a module computes; False if that is unknown."""
    if first is second and not isinstance(first, Tensor):
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return _equal_bits(first, second)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_equal(own, second[key]) for key, own in first.items())
    if isinstance(first, partial):
        return _equal((first.func, first.args, first.keywords), (second.func, second.args, second.keywords))
    plain = (bool, int, float, complex, str, bytes, set, frozenset, torch.device)
    return isinstance(first, plain) and first == second


def _equal_bits(first: Tensor, second: Tensor) -> bool:
    """Whether frozen tensors have equal bits and layout, which kernels depend on; False if they have NaNs."""
    kind = [(t.dtype, t.device, t.shape, t.stride()) for t in (first, second)]
    if kind[0] != kind[1] or first.requires_grad or second.requires_grad:
        return False
    return torch.equal(first, second) and (
        not first.is_floating_point() or torch.equal(first.signbit(), second.signbit())
    )


def _reads(first: nn.Module, second: nn.Module, method: str) -> list[tuple[nn.Module, nn.Module]] | None:
    """The pairs of modules that a method reads, if all that it reads is the same in both; else None."""
    function = getattr(type(first), method, None)
    if function is None or type(first) is not type(second):
        return None
    pairs = [(first, second)]
    for name in {method} | _names(function.__code__, type(first), set()) - {"training"}:
        mine, other = getattr(first, name, _ABSENT), getattr(second, name, _ABSENT)
        if isinstance(mine, MethodType):  # a method of the class, whose own names are included
            if name in vars(first) or name in vars(second):
                return None
        elif isinstance(mine, nn.Module) and isinstance(other, nn.Module):
            if not _same(mine, other, below=True):
                return None
            pairs += zip(mine.modules(), other.modules())
        elif not _equal(mine, other):
            return None
    return pairs


def _names(code: CodeType, of: type, seen: set[str]) -> set[str]:
    """The names that a function looks up, and those of the class's methods that it may call."""
    for name in set(code.co_names) - seen:
        if hasattr(nn.Module, name):
            continue
        seen.add(name)
        if (inner := getattr(getattr(of, name, None), "__code__", None)) is not None:
            _names(inner, of, seen)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _names(constant, of, seen)
    return seen
