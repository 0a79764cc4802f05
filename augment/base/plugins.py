"""Import the class that a config names as ``package.module:Class``, and check that it has the right base."""

from __future__ import annotations

import importlib
import inspect

from augment.base.errors import UserError
from augment.base.suggestions import did_you_mean


class PluginError(UserError, ValueError):
    """A config named a class that cannot be used; the text says which and why."""


def is_import_path(name: str) -> bool:
    """Whether ``name`` has the form ``package.module:Class``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), attribute])


def import_class(path: str, contract: type | None = None) -> type:
    """The class at ``package.module:Class``.

    Args:
        path: import path; the module must be installed, or in the folder that the command runs in.
        contract: base class that it must derive from; ``None`` accepts any class.

    Raises:
        PluginError: the module is missing or fails, it has no such name, the object is no class, or no ``contract``.
    """
    if not is_import_path(path):
        raise PluginError(f"{path!r} is no import path; write package.module:Class")
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            text = f"no module named {error.name!r}; is it installed, or in the folder that you run from?"
        else:
            text = f"importing {module_name!r} failed: {type(error).__name__}: {error}"
        raise PluginError(f"{path!r}: {text}") from error
    attribute_value = getattr(module, attribute, None)
    if attribute_value is None:
        classes = [name for name, value in vars(module).items() if inspect.isclass(value)]
        raise PluginError(f"{path!r}: module {module_name!r} has no {attribute!r}{did_you_mean(attribute, classes)}")
    if not inspect.isclass(attribute_value):
        raise PluginError(f"{path!r} is a {type(attribute_value).__name__}, not a class")
    if contract is not None and not issubclass(attribute_value, contract):
        raise PluginError(f"{path!r} does not derive from {contract.__module__}.{contract.__qualname__}")
    return attribute_value
