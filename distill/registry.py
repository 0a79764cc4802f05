"""How a config names a method: the union of known types is collected from a package, there is no list to edit.

A method is a class with its settings nested in it::

    class KD(Objective):
        class Settings(Objective.Settings):
            type: Literal["kd"] = "kd"
            temperature: float = Field(4.0, gt=0)

``Family("distill.objectives", Objective)`` annotates a config field: ``{type: kd, temperature: 2}`` becomes a
``KD.Settings``, and ``settings.component`` is ``KD``. A user's own class is named ``package.module:Class``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any, Union, get_args

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from augment.plugins import PluginError, import_class, is_import_path
from augment.settings import Settings, nearest


class Component:
    """A class that a config can name. A subclass with its own nested ``Settings`` is linked to them."""

    Settings: type[Settings] = Settings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Settings" in cls.__dict__:
            cls.Settings.component = cls


@dataclass(frozen=True)
class Family:
    """A pydantic annotation for "any settings of this family".

    Args:
        package: dotted package whose modules hold the family's classes, one file each.
        base: name of the base class, defined in ``<package>.base``.
    """

    package: str
    base: str

    @property
    def contract(self) -> type[Component]:
        return getattr(importlib.import_module(f"{self.package}.base"), self.base)

    def known(self) -> dict[str, type[Settings]]:
        """Type name → settings of every class of this family inside the package."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__, f"{self.package}."):
            importlib.import_module(module.name)
        found: dict[str, type[Settings]] = {}
        pending = self.contract.__subclasses__()
        while pending:
            cls = pending.pop()
            pending += cls.__subclasses__()
            names = get_args(cls.Settings.model_fields["type"].annotation)
            if cls.__module__.startswith(f"{self.package}.") and cls.Settings.component is cls and names:
                found[names[0]] = cls.Settings
        return dict(sorted(found.items()))

    def settings_of(self, name: str) -> type[Settings]:
        """The settings class of a type name or import path. Raises ``PluginError`` that names the nearest type."""
        if is_import_path(name):
            return import_class(name, self.contract).Settings  # type: ignore[attr-defined]
        known = self.known()
        if name not in known:
            hint = nearest(name, known)
            raise PluginError(f"unknown {self.base.lower()} type {name!r}{hint} (or your own as package.module:Class)")
        return known[name]

    def validate(self, value: Any) -> Settings:
        if isinstance(value, Settings):
            if value.component is None or not issubclass(value.component, self.contract):
                raise PydanticCustomError("wrong_family", f"{type(value).__qualname__} configures no {self.base}")
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict) or not isinstance(value.get("type"), str):
            raise PydanticCustomError("no_type", f"expected a mapping with a 'type' key: a {self.base.lower()}")
        try:
            settings = self.settings_of(value["type"])
        except PluginError as error:
            raise PydanticCustomError("unknown_type", "{reason}", {"reason": str(error)}) from error
        return settings.model_validate(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.validate,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.model_dump(mode="json")),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        known: Any = Union[tuple(self.known().values())]
        return handler(TypeAdapter(known).core_schema)
