"""Import methods for what their classes declare (settings, defaults, citation, what they read), without torch.

A method is one file, so its declarations are in the module that computes with torch, whose import takes seconds. A
command that only lists methods needs nothing else. While :func:`declarations_only` is open, torch is a package of
stand-ins: every name in it can be imported, called, indexed and derived from, which is all that a module does with it
while it is imported. A class that derives from ``nn.Module`` then derives from ``object``. Modules that were imported
in this way are forgotten at the end, so that a later import gets the real ones.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

SLOW = ("torch", "torchvision", "timm", "lightning", "safetensors")
"""Packages that methods compute with."""


class StandIn:
    """Stands for anything in a package that is not imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """The decorated function, if it is used as a decorator; else another stand-in."""
        decorates = len(arguments) == 1 and not keywords and callable(arguments[0])
        return arguments[0] if decorates else StandIn()

    def __getitem__(self, key: Any) -> StandIn:
        return self

    def __or__(self, other: Any) -> StandIn:
        return self

    __ror__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class _StandInModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn()


class _Finder:
    """Finds stand-ins for packages and everything below them."""

    def __init__(self, packages: Sequence[str]):
        self.packages = frozenset(packages)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _StandInModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to execute."""


@contextmanager
def declarations_only(packages: Sequence[str] = SLOW) -> Iterator[None]:
    """Import modules inside with stand-ins for ``packages``. Those that are imported already are used as they are."""
    finder = _Finder([name for name in packages if name not in sys.modules])
    if not finder.packages:
        yield
        return
    before = set(sys.modules)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    try:
        yield
    finally:
        sys.meta_path.remove(finder)  # type: ignore[arg-type]
        forgotten = {"augment", "distill", *finder.packages}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in forgotten:
                parent, _, child = name.rpartition(".")
                vars(sys.modules.get(parent, ModuleType(""))).pop(child, None)
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in forgotten:
                del sys.modules[name]
