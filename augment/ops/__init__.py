"""The operations of this package: one file each, named in a recipe by the name of its class.

The files of this folder are discovered; there is no list to edit. The operations are batched: every sample has its own
draws, and no loop runs over samples. If kornia has an operation of the same meaning, the one here is faster or more
exact, and its docstring says which.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from augment.container import Container
from augment.operation import Sampled


@cache
def operations() -> dict[str, type]:
    """Every operation of this package by name. Imports torch, but not kornia."""
    classes: dict[str, type] = {}
    for file in iter_modules(__path__, f"{__name__}."):
        for name, value in vars(import_module(file.name)).items():
            if isinstance(value, type) and value.__module__ == file.name and issubclass(value, Sampled | Container):
                classes[name] = value
    return dict(sorted(classes.items()))
