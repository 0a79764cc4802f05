"""Op: an operation as a config names it, and how it is built.

In YAML an operation is a name, or a mapping with ``type`` and the arguments of its class::

    - RandomHorizontalFlip
    - {type: RandomResizedCrop, scale: [0.3, 1.0]}
    - {type: my_package.ops:Tint, strength: 0.3}
    - {type: OneOf, transforms: [RandomGrayscale, RandomInvert]}

``transforms`` of a container (:mod:`augment.container`, and torchvision's) is a recipe of its own. Where
names are looked up: :mod:`augment.names`; what a user's class must have: :mod:`augment.operation`. A class that
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
    TypeAdapter,
    ValidationError,
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
    def attempt(cls, type: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Build it once, to check that it can be built. Raises ``OperationError``.

        Returns:
            The arguments as a run stores them.
        """
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
                arguments = cls.attempt(data["type"], arguments)
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
    def attempt(cls, type: str, arguments: dict[str, Any]) -> dict[str, Any]:
        build(type, arguments, size=(32, 32))
        return _expanded(type, arguments)

    @property
    def transforms(self) -> list[Op]:
        """The operations that a container of ours applies; none for any other operation."""
        return _recipe(self.arguments["transforms"]) if _is_container(find_class(self.type)) else []

    @property
    def leaves(self) -> list[Op]:
        """The operations inside a container, at any depth; any other operation itself."""
        if not _is_container(find_class(self.type)):
            return [self]
        return [leaf for op in self.transforms for leaf in op.leaves]

    @property
    def geometry(self) -> Op:
        """What moves pixels in it: of a container of ours the same container with only those operations.

        Members keep their places, so that the draws, which are keyed by them, stay the same.
        """
        if not _is_container(find_class(self.type)):
            return self
        nothing = Op.of("Sequential", transforms=[])
        kept = [op.geometry if op.geometric else nothing for op in self.transforms]
        return Op.of(self.type, **{**self.arguments, "transforms": [op.model_dump() for op in kept]})

    def build(self, size: tuple[int, int]) -> Operation:
        """The operation, for a network whose input has ``size`` (height, width)."""
        return build(self.type, self.arguments, size)

    @property
    def geometric(self) -> bool:
        """Whether it moves pixels; those operations are shared by the policy ``shared_geometry``."""
        return self.build((32, 32)).geometric

    @property
    def follows_network_size(self) -> bool:
        """Whether its ``size``, or that of an operation inside, is left to the network."""
        if self.transforms:
            return any(op.follows_network_size for op in self.transforms)
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
    from augment.operation import Operation

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
    if _takes_operations(cls) and "transforms" in arguments:
        given["transforms"] = _members(name, cls, arguments["transforms"], size)
    _check_kernel(name, cls, arguments)
    _check_probability(name, cls, arguments)
    try:
        user = cls(**given)
    except Exception as error:  # any error of the class is reported as an error of its arguments
        raise OperationError(key_of(error, arguments), f"{name} refuses its arguments: {error}") from error
    _check_draws_by_sample(name, user)
    if isinstance(user, Operation):
        user.name = name
        return user
    return wrap(user, name)


def built(item: Op | Callable[..., Any], size: tuple[int, int] | None = None) -> Operation:
    """The operation of a chain's item: from its settings, or an object of any shape that a config can name.

    Args:
        item: settings, an operation, or an object; an ``nn.Sequential`` becomes a ``Sequential`` of its modules.
        size: (height, width) of the network's input, for settings that do not give it.

    Raises:
        OperationError: the object is no operation, or settings need a size that is not known.
    """
    from torch import nn

    from augment.operation import Operation

    if isinstance(item, Op):
        if size is None and item.follows_network_size:
            raise OperationError("size", f"{item.type} in a container that is made in Python needs its argument 'size'")
        return item.build(size or (0, 0))
    if isinstance(item, type):
        raise OperationError("type", f"{item.__qualname__} is a class; give the chain an object of it")
    if isinstance(item, Operation):
        if item.name == Operation.name:
            item.name = name_of(item)
        return item
    if type(item) is nn.Sequential:
        from augment.ops.sequential import Sequential

        return Sequential(list(item))
    name = name_of(item)
    wrap = wrapper_of(type(item), name)
    _check_draws_by_sample(name, item)
    return wrap(item, name)


def key_of(error: Exception, arguments: dict[str, Any]) -> str:
    """The argument that an error of a class speaks of, by its name or the name's words, or ``"type"``."""
    text = str(error).lower().replace("_", " ")
    matches = {key: re.search(rf"\b{re.escape(key.lower().replace('_', ' '))}\b", text) for key in arguments}
    named = {key: match.start() for key, match in matches.items() if match}
    if named:
        return min(named, key=lambda key: named[key])
    return next(iter(arguments)) if len(arguments) == 1 else "type"


def _is_container(cls: type) -> bool:
    from augment.container import Container

    return issubclass(cls, Container)


def _takes_operations(cls: type) -> bool:
    """Whether ``transforms`` is a recipe: of our containers, and torchvision's."""
    torchvision = cls.__module__.startswith("torchvision.transforms") and "transforms" in _parameters(cls)
    return torchvision or _is_container(cls)


def _expanded(type: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the presets in ``transforms`` written out, at any depth."""
    if not _takes_operations(find_class(type)):
        return arguments
    inside = [Op.of(op.type, **_expanded(op.type, op.arguments)) for op in _recipe(arguments["transforms"])]
    return {**arguments, "transforms": [op.model_dump() for op in inside]}


def _recipe(transforms: Any) -> list[Op]:
    """The operations in a recipe that was checked before, presets expanded."""
    from augment.presets import Recipe

    return TypeAdapter(Recipe).validate_python(transforms, context=frozenset({"operations"}))


def _members(name: str, cls: type, transforms: Any, size: tuple[int, int]) -> list[Any]:
    """What a container is made of. Raises ``OperationError`` with the path of the argument at fault."""
    if isinstance(transforms, dict | str) and not _names_preset(transforms):
        raise OperationError("transforms", f"{name}: transforms is a list of operations, not {transforms!r}")
    try:
        operations = _recipe(transforms)
    except ValidationError as error:
        detail = error.errors()[0]
        raise OperationError(".".join(map(str, ("transforms", *detail["loc"]))), detail["msg"]) from error
    members: list[Any] = []
    for index, op in enumerate(operations):
        try:
            member = op.build(size)
        except OperationError as error:
            raise OperationError(f"transforms.{index}.{error.key}", str(error)) from error
        if _is_container(cls):
            members.append(member)
            continue
        if not op.type.startswith("torchvision.transforms"):
            containers = {"RandomChoice": "OneOf", "Compose": "Sequential", "RandomOrder": "SomeOf"}
            raise OperationError(
                f"transforms.{index}.type",
                f"{name} holds torchvision's transforms, and {op.type} is none; for operations of every kind write "
                f"{containers.get(cls.__name__, 'RandomApply')}",
            )
        members.append(member.user)
    return members


def _names_preset(transforms: Any) -> bool:
    return transforms.islower() if isinstance(transforms, str) else "preset" in transforms


def _check_kernel(name: str, cls: type, arguments: dict[str, Any]) -> None:
    """Refuse a kernel without a middle pixel, of which kornia complains with the first batch, or never."""
    given = arguments.get("kernel_size")
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    kornia = cls.__module__.startswith("kornia.")
    if kornia and any(isinstance(size, int) and (size % 2 == 0 or size < 1) for size in sizes):
        raise OperationError(
            "kernel_size", f"{name}: kernel_size {given} is even; a kernel has a middle pixel, take 3, 5, 7 …"
        )


def _check_probability(name: str, cls: type, arguments: dict[str, Any]) -> None:
    """Refuse a ``p`` outside 0 … 1, which kornia and torchvision take without a word."""
    p = arguments.get("p", 0)
    if isinstance(p, list | tuple) and cls.__module__.startswith("torchvision."):
        return  # the weights of RandomChoice
    number = isinstance(p, int | float) and not isinstance(p, bool)
    if cls.__module__.startswith(("kornia.", "torchvision.")) and not (number and 0 <= p <= 1):
        raise OperationError("p", f"{name}: p is a probability, 0 … 1, not {p!r}")


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
