"""Which parts of two networks compute the same: modules of one name, class, configuration and frozen state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import CodeType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

METHODS = ("_pos_embed",)
"""What timm's transformers do between two modules, in a method of its own: it counts as a module."""

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
    """All modules whose state goes into it."""


def parts_alike(ours: nn.Module, theirs: nn.Module, name: str = "") -> Iterator[tuple[Part, Part]]:
    """The largest parts of two networks that are the same, but containers, in whose place their children stand.

    Forwards may call a container's children one by one, as timm's ``forward_intermediates`` does. Training flags are
    not looked at: they change.
    """
    container = isinstance(ours, nn.Sequential) or type(ours).forward is nn.Module.forward
    if not container and _same(ours, theirs):
        yield tuple(Part(name, "forward", module, tuple(module.modules())) for module in (ours, theirs))  # type: ignore[misc]
        return
    for method in METHODS:
        reads = _reads(ours, theirs, method)
        if reads is not None:
            yield tuple(Part(name, method, module, read) for module, read in zip((ours, theirs), zip(*reads)))  # type: ignore[misc]
    for child, module in ours.named_children():
        other = theirs._modules.get(child)
        if other is not None and other is not module:
            yield from parts_alike(module, other, f"{name}.{child}" if name else child)


def _same(ours: nn.Module, theirs: nn.Module, below: bool = False) -> bool:
    """Whether both compute the same. Nothing may be hooked to a module below the top one: it would not be called."""
    if type(ours) is not type(theirs) or isinstance(ours, torch.jit.ScriptModule):
        return False
    if below and (_hooked(ours) or _hooked(theirs)):
        return False
    mine, other = ([(key, own) for key, own in vars(m).items() if key not in _OF_EVERY_MODULE] for m in (ours, theirs))
    return (
        _equal(dict(mine), dict(other))
        and _equal(ours._parameters, theirs._parameters)
        and _equal(ours._buffers, theirs._buffers)
        and ours._modules.keys() == theirs._modules.keys()
        and all(_same_child(child, theirs._modules[name]) for name, child in ours._modules.items())
    )


def _same_child(ours: nn.Module | None, theirs: nn.Module | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return _same(ours, theirs, below=True)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _equal(ours: Any, theirs: Any) -> bool:
    """Whether two values make no difference to what a module computes; False where that cannot be told."""
    if ours is theirs and not isinstance(ours, Tensor):
        return True
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, Tensor):
        return _equal_bits(ours, theirs)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_equal, ours, theirs))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_equal(own, theirs[key]) for key, own in ours.items())
    if isinstance(ours, partial):
        return _equal((ours.func, ours.args, ours.keywords), (theirs.func, theirs.args, theirs.keywords))
    plain = (bool, int, float, complex, str, bytes, set, frozenset, torch.device)
    return isinstance(ours, plain) and ours == theirs


def _equal_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Frozen tensors of the same bits, and of the same layout: kernels are chosen by it. Not where there are NaNs."""
    kind = [(t.dtype, t.device, t.shape, t.stride()) for t in (ours, theirs)]
    if kind[0] != kind[1] or ours.requires_grad or theirs.requires_grad:
        return False
    return torch.equal(ours, theirs) and (not ours.is_floating_point() or torch.equal(ours.signbit(), theirs.signbit()))


def _reads(ours: nn.Module, theirs: nn.Module, method: str) -> list[tuple[nn.Module, nn.Module]] | None:
    """The pairs of modules that a method reads, if all that it reads is the same in both; else None."""
    function = getattr(type(ours), method, None)
    if function is None or type(ours) is not type(theirs):
        return None
    found = [(ours, theirs)]
    for name in {method} | _names(function.__code__, type(ours), set()) - {"training"}:
        mine, other = getattr(ours, name, _ABSENT), getattr(theirs, name, _ABSENT)
        if isinstance(mine, MethodType):  # the class's own: what it reads is among the names
            if name in vars(ours) or name in vars(theirs):
                return None
        elif isinstance(mine, nn.Module) and isinstance(other, nn.Module):
            if not _same(mine, other, below=True):
                return None
            found += zip(mine.modules(), other.modules())
        elif not _equal(mine, other):
            return None
    return found


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
