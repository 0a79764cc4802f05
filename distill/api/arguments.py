"""Checks of argument names, whose errors give the nearest valid name; the registries of objectives and deltas."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

from augment.base.registry import Registry
from augment.base.settings import Settings
from augment.base.suggestions import did_you_mean

P = ParamSpec("P")
R = TypeVar("R")

OBJECTIVES = Registry("distill.objectives", "Objective")
DELTAS = Registry("distill.deltas", "Delta")


def checks_names(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function without ``**kwargs``: an unknown keyword is a ``TypeError`` that names the nearest one."""
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_unknown(f"{function.__name__}()", kwargs, names)
        return function(*args, **kwargs)

    return call


def refuse_unknown(caller: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``TypeError`` for the first unknown name.

    Args:
        caller: the function that the error names.
        given: names of arguments.
        known: names that are accepted.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{caller} got an unexpected argument {name!r}{did_you_mean(name, known)}")


def check_method(registry: Registry, value: object, caller: str, more: Iterable[str] = ()) -> type[Settings]:
    """The settings class of a method, given as a name, a mapping with ``type``, or settings; checks the names of keys.

    Args:
        registry: of the methods.
        value: a name, a mapping with ``type`` and settings, or settings.
        caller: the function and argument that errors name.
        more: names of settings given in addition to ``value``.

    Returns:
        The class that validates them.

    Raises:
        TypeError: ``value`` is of another type, or there is no setting of a given name.
        PluginError: there is no such method.
    """
    if isinstance(value, Settings):
        if value.component is None or not issubclass(value.component, registry.contract):
            raise TypeError(f"{caller} {type(value).__qualname__} configures no {registry.base.lower()}")
        refuse_unknown(caller, more, type(value).model_fields)
        return type(value)
    tree = {"type": value} if isinstance(value, str) else value
    if not isinstance(tree, Mapping) or not isinstance(tree.get("type"), str):
        raise TypeError(f"{caller} expected a name, a mapping with 'type', or settings, but got {value!r}")
    settings = registry.settings_of(tree["type"])
    refuse_unknown(f"{caller} {tree['type']!r},", [*map(str, tree), *more], settings.model_fields)
    return settings
