"""Lightning without the imports of the whole of torchmetrics, which take a third of the seconds until a run starts.

Lightning needs two classes of that package, whose ``__init__`` imports hundreds of metrics, with them ``scipy.signal``
and, where it is installed, ``transformers``. :func:`register` has the package begin with these two; what else is asked
of it runs its ``__init__``, so that other code in the process finds the package as it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from types import ModuleType
from typing import Any

PACKAGE = "torchmetrics"
OWN = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
"""Name that Lightning imports → module that defines it."""


class LazyPackage(ModuleType):
    """The package before its ``__init__`` has run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in OWN:
            importlib.import_module("torchmetrics.utilities")  # metric and utilities import each other: in this order
            value = vars(self)[name] = getattr(importlib.import_module(OWN[name]), name)
            return value
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None and self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def register() -> None:
    """Have the package begin without its ``__init__``, unless it is imported already or not installed."""
    if PACKAGE in sys.modules or (spec := importlib.util.find_spec(PACKAGE)) is None:
        return
    package = importlib.util.module_from_spec(spec)
    package.__class__ = LazyPackage
    vars(package)["_logger"] = logging.getLogger(PACKAGE)  # read by the modules of the two classes
    sys.modules[PACKAGE] = package
