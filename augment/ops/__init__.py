"""Operations of this package's own, one file each; collected from here, there is no list to edit."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache


@cache
def operations() -> dict[str, type]:
    """Name → class of every operation: the public classes of this package's modules that a chain can run."""
    from augment.operation import kind_of  # torch takes seconds

    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for name, value in vars(importlib.import_module(module.name)).items():
            here = isinstance(value, type) and value.__module__ == module.name
            if here and not name.startswith("_") and kind_of(value) is not None:
                found[name] = value
    return dict(sorted(found.items()))
