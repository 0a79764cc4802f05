"""Op: an operation as a config names it, and how it is built.

In YAML an operation is a name, or a mapping with ``type`` and the arguments of its class::

    - RandomHorizontalFlip
    - {type: RandomResizedCrop, scale: [0.3, 1.0]}
    - {type: my_package.ops:Tint, strength: 0.3}

Where names are looked up: :mod:`augment.names`; what a user's class must have: :mod:`augment.operation`. A class that
requires ``size`` and is given none gets its network's input size. In Python a chain also takes objects that are built
already: ``Chain([K.RandomHorizontalFlip(), v2.ColorJitter(0.4)], size)``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from augment.base import Settings, did_you_mean, error_at, is_deferred
from augment.names import OperationError, find_class, name_of, wrapper_of

if TYPE_CHECKING:  # a config is read before torch is imported, which takes seconds
    from augment.operation import Operation


class NamedCall(Settings):
    """A class by name with the arguments of its constructor, written inline: a name, or a mapping with ``type``."""

    type: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, type: str, **arguments: Any) -> Self:
        """An operation that is known to be valid, not built until used."""
        return cls.model_construct(type=type, arguments=arguments)  # type: ignore[return-value]  # mypy's plugin

    @classmethod
    def attempt(cls, type: str, arguments: dict[str, Any]) -> None:
        """Build it once, to check that it can be built. Raises ``OperationError``."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _from_inline(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, str):
            data = {"type": data}
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict) or not isinstance(data.get("type"), str):
            raise PydanticCustomError("no_type", "expected an operation's name, or a mapping with 'type' and arguments")
        arguments = {str(key): value for key, value in data.items() if key != "type"}
        try:
            if not is_deferred(info, "operations"):
                cls.attempt(data["type"], arguments)
        except OperationError as error:
            raise error_at(error.key, str(error)) from error
        return {"type": data["type"], "arguments": arguments}

    @model_serializer(mode="wrap")
    def _inline(self, handler: SerializerFunctionWrapHandler) -> Any:
        plain = handler(self)
        return {"type": plain["type"], **plain["arguments"]} if self.arguments else self.type

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        mapping = {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]}
        return {"anyOf": [{"type": "string"}, mapping], "description": cls.__doc__}


class Op(NamedCall):
    """One operation of a chain: a name (built in, a plug-in's or kornia's) or package.module:Class, and arguments."""

    @classmethod
    def attempt(cls, type: str, arguments: dict[str, Any]) -> None:
        build(type, arguments, size=(32, 32))

    def build(self, size: tuple[int, int]) -> Operation:
        """The operation, for a network whose input has ``size`` (height, width)."""
        return build(self.type, self.arguments, size)

    @property
    def geometric(self) -> bool:
        """Whether it moves pixels; those operations are shared by the policy ``shared_geometry``."""
        return self.build((32, 32)).geometric

    @property
    def follows_network_size(self) -> bool:
        """Whether its ``size`` is left to the network."""
        return "size" not in self.arguments and "size" in _required(find_class(self.type))


def build(name: str, arguments: dict[str, Any], size: tuple[int, int]) -> Operation:
    """Build an operation by name.

    Args:
        name: as in a recipe.
        arguments: of its class, as in a config.
        size: (height, width) of the network's input, for a class whose ``size`` is not given.

    Returns:
        The operation, ready for a chain.

    Raises:
        OperationError: unknown name, unknown, missing or refused argument, or the class itself refuses.
    """
    cls = find_class(name)
    wrap = wrapper_of(cls, name)
    _check_arguments(name, cls, arguments)
    parameters = _parameters(cls)
    given = {
        key: _as_annotated(value, parameters[key].annotation if key in parameters else None)
        for key, value in arguments.items()
    }
    if "size" in _required(cls):
        given.setdefault("size", size)
    try:
        user = cls(**given)
    except Exception as error:  # any error of the class is reported as an error of its arguments
        named = [key for key in arguments if re.search(rf"\b{re.escape(key)}\b", str(error))]
        key = named[0] if named else next(iter(arguments)) if len(arguments) == 1 else "type"
        raise OperationError(key, f"{name} refuses its arguments: {error}") from error
    _check_draws_by_sample(name, user)
    return wrap(user, name)


def built(item: Op | Callable[..., Any], size: tuple[int, int]) -> tuple[str, Operation]:
    """The name and operation of a chain's item: from its settings, or an object of any shape that a config can name.

    Raises:
        OperationError: the object is no operation.
    """
    from augment.operation import Operation

    if isinstance(item, Op):
        return item.type, item.build(size)
    if isinstance(item, type):
        raise OperationError("type", f"{item.__qualname__} is a class; give the chain an object of it")
    name = name_of(item)
    if isinstance(item, Operation):
        return name, item
    wrap = wrapper_of(type(item), name)
    _check_draws_by_sample(name, item)
    return name, wrap(item, name)


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def _required(cls: type) -> set[str]:
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {key for key, p in _parameters(cls).items() if p.default is p.empty and p.kind in plain}


def _check_arguments(name: str, cls: type, arguments: dict[str, Any]) -> None:
    parameters = _parameters(cls)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in arguments:
            if key not in parameters:
                raise OperationError(key, f"{name} has no argument {key!r}{did_you_mean(key, parameters)}")
    missing = sorted(_required(cls) - set(arguments) - {"size"})
    if missing:
        raise OperationError(missing[0], f"{name} needs the argument {missing[0]!r}")


def _check_draws_by_sample(name: str, module: Any) -> None:
    """Refuse draws that kornia makes once for a batch: a sample's result would depend on its neighbors."""
    if not type(module).__module__.startswith("kornia.augmentation"):
        return
    if module.p_batch != 1:
        key = "p_batch" if "p_batch" in _parameters(type(module)) else "p"
        raise OperationError(key, f"{name}: {key}={module.p_batch} is for a whole batch at once; only 1 is possible")
    if module.same_on_batch and "same_on_batch" in _parameters(type(module)):
        raise OperationError("same_on_batch", f"{name}: same_on_batch is not possible, every sample has its own draws")
    if module.same_on_batch and 0 < module.p < 1:
        raise OperationError("p", f"{name}: p={module.p} is for a whole batch at once; only 0 or 1 is possible")


def _as_annotated(value: Any, annotation: Any) -> Any:
    """Convert YAML's lists to tuples, or to tensors where kornia expects these."""
    if not isinstance(value, list | tuple):
        return value
    import torch

    if annotation in (torch.Tensor, torch.Tensor | None, "torch.Tensor", "Tensor"):
        return torch.tensor(value)
    return tuple(_as_annotated(item, None) for item in value)
