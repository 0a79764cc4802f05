"""Registry: the methods that a config can name, collected from the modules of a package.

A method is a class with its settings nested in it::

    class KD(Objective):
        class Settings(Objective.Settings):
            type: Literal["kd"] = "kd"
            temperature: float = Field(4.0, gt=0)

``Registry("distill.objectives", "Objective")`` annotates a config field: ``{type: kd, temperature: 2}`` becomes a
``KD.Settings``, and ``settings.component`` is ``KD``. A user's own class is named ``package.module:Class``.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from types import new_class
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from augment.base.plugins import PluginError, import_class, is_import_path
from augment.base.settings import Settings, error_at, is_deferred
from augment.base.suggestions import did_you_mean, table


@cache
def _modules_of(package: str) -> tuple[str, ...]:
    """Names of the modules of a package; listed once, since looking for them in its folder takes a millisecond."""
    path = importlib.import_module(package).__path__
    return tuple(module.name for module in pkgutil.iter_modules(path, f"{package}."))


class Component:
    """A class that a config can name, linked to its nested ``Settings``, which default to those of its parent."""

    Settings: type[Settings] = Settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Settings" not in cls.__dict__:
            # A subclass, because its ``component`` differs; any ``type``, because its import path is the name.
            named = {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.Settings"}
            cls.Settings = new_class(
                "Settings", (cls.Settings,), exec_body=lambda body: body.update(named, __annotations__={"type": str})
            )
        cls.Settings.component = cls
        if cls.Settings.__doc__ is None:
            cls.Settings.__doc__ = cls.__doc__  # what an editor shows


@dataclass(frozen=True)
class Registry:
    """A pydantic annotation for the settings of any method of one kind.

    Args:
        package: dotted name of the package whose modules define the classes, one file each.
        base: name of the base class, defined in ``<package>.base``.
    """

    package: str
    base: str

    @property
    def noun(self) -> str:
        """The base class's name as messages write it: ``export target`` of ``ExportTarget``."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.base).lower()

    @property
    def contract(self) -> type[Component]:
        return getattr(importlib.import_module(f"{self.package}.base"), self.base)

    def known(self) -> dict[str, type[Settings]]:
        """Type name → settings, for every class of this kind in the package."""
        for module in _modules_of(self.package):
            importlib.import_module(module)
        return self._imported()

    def _imported(self) -> dict[str, type[Settings]]:
        """Type name → settings, for the classes of this kind whose modules are imported."""
        known: dict[str, type[Settings]] = {}
        pending = self.contract.__subclasses__()
        while pending:
            cls = pending.pop()
            pending += cls.__subclasses__()
            names = get_args(cls.Settings.model_fields["type"].annotation)
            if cls.__module__.startswith(f"{self.package}.") and cls.Settings.component is cls and names:
                known[names[0]] = cls.Settings
        return dict(sorted(known.items()))

    def settings_of(self, name: str) -> type[Settings]:
        """The settings class of a type name or import path. Raises ``PluginError`` that names the nearest type."""
        if is_import_path(name):
            settings = import_class(name, self.contract).Settings  # type: ignore[attr-defined]
            fixed = get_args(settings.model_fields["type"].annotation)
            if fixed:
                raise PluginError(f"{name!r}: its Settings fix 'type' to {fixed[0]!r}; declare it there as type: str")
            return settings
        module = f"{self.package}.{name}"
        if module in _modules_of(self.package):  # it is named like the type: no other module is needed
            importlib.import_module(module)
            if name in (imported := self._imported()):
                return imported[name]
        known = self.known()
        if name not in known:
            hint = self._hint(name, known)
            raise PluginError(f"unknown {self.noun} type {name!r}{hint} (or your own as package.module:Class)")
        return known[name]

    def _hint(self, name: str, known: Iterable[str]) -> str:
        """The nearest type, or the one that other libraries call so: the package's module ``other_names`` has those."""
        module = f"{self.package}.other_names"
        others = importlib.import_module(module) if importlib.util.find_spec(module) else None
        return did_you_mean(
            name, known, table(getattr(others, "OTHER_NAMES", {})), listed_by=getattr(others, "LISTED_BY", "")
        )

    def validate(self, value: Any, info: ValidationInfo) -> Any:
        kind = self.noun
        if isinstance(value, Settings):
            if value.component is None or not issubclass(value.component, self.contract):
                raise PydanticCustomError("wrong_component", f"{type(value).__qualname__} configures no {kind}")
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise PydanticCustomError("no_type", f"expected a mapping with the key 'type': which {kind}")
        if is_deferred(info, "classes"):
            return value
        try:
            settings = self.settings_of(value["type"])
        except PluginError as error:
            raise error_at("type", str(error)) from error
        return settings.model_validate(value, context=info.context)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json")),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known = self.known()
        options = [{**handler(TypeAdapter(known[name]).core_schema), "title": name} for name in known]
        own = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "your own class, as package.module:Class"}
        return {
            "anyOf": [
                *options,
                {"type": "object", "properties": {"type": own}, "required": ["type"]},
                {"enum": list(known), "description": "the name alone: every setting has its default"},
                own,
            ]
        }


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that an fnmatch pattern finds, sorted; all of them where it is empty."""
    return sorted(name for name in names if not pattern or fnmatchcase(name.lower(), pattern.lower()))
