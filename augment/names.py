"""Look up the name of an operation.

==============================  =====================================================================================
name                            operation
==============================  =====================================================================================
``PadCrop``                     an operation of this package, see :mod:`augment.ops`
``MyOp``                        an entry point of group ``distill.augment``, declared by an installed package
``RandomResizedCrop``           a 2-D augmentation of kornia
``package.module:Class``        a class of your own, or of torchvision: ``torchvision.transforms.v2:RandomPerspective``
==============================  =====================================================================================

A name has one meaning: two entry points of one name, or one with the name of an operation of this package or of kornia,
are an error that names the distributions. Names without a capital letter are presets, see :mod:`augment.presets`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from augment.base import PluginError, UserError, did_you_mean, import_class, is_import_path, matching
from augment.base.suggestions import table
from augment.other_names import OPERATIONS

if TYPE_CHECKING:  # a config is read before torch is imported, which takes seconds
    from augment.operation import Operation

GROUP = "distill.augment"
"""The group of entry points that declare operations."""


class OperationError(UserError, ValueError):
    """An operation cannot be built from its settings. ``key`` is the argument at fault, or ``"type"``."""

    def __init__(self, key: str, text: str):
        super().__init__(text)
        self.key = key


def find_class(name: str) -> type:
    """The class called ``name``.

    Raises:
        OperationError: nothing or more than one thing has that name, or it cannot be imported.
    """
    if is_import_path(name):
        if name.startswith("albumentations"):
            refuse_conversion(name)
            raise OperationError("type", f"{name}: albumentations run on the loader's side, in data.loader_ops")
        return _imported(name)
    builtin = _builtin()
    declared = _declared(name)
    if declared is None and name in builtin:
        return builtin[name]
    known = _kornia()  # imported only if needed, because that takes most of a second
    if declared is not None:
        if name.islower():
            raise OperationError(
                "type", f"{name!r} of {_distribution(declared)} needs a capital letter: recipes have none"
            )
        if name in builtin or name in known:
            taken = "Delta Distill" if name in builtin else "kornia"
            raise OperationError("type", f"{name!r} of {_distribution(declared)} is already an operation of {taken}")
        return _imported(declared.value, name)
    if name in known:
        return known[name]
    refuse_conversion(name)
    from kornia import augmentation

    if isinstance(getattr(augmentation, name, None), type):
        raise OperationError("type", _not_alone(name))
    every = {*known, *builtin, *(point.name for point in _points(tuple(sys.path)))}
    hint = did_you_mean(name, every, table(OPERATIONS), listed_by="augment list")
    raise OperationError("type", f"no operation is called {name!r}{hint}")


_CONVERSIONS = {
    *("Normalize", "Denormalize", "ToTensor", "PILToTensor", "ToPILImage", "ToImage", "ToDtype", "ToPureTensor"),
    *("ConvertImageDtype", "ToFloat", "FromFloat", "ToTensorV2", "ToTensor3D"),
}


def refuse_conversion(name: str) -> None:
    """Refuse a library's conversion between kinds of images, by the name of its class.

    Raises:
        OperationError: a recipe needs no conversion, because a chain makes it.
    """
    if name.rpartition(":")[2] in _CONVERSIONS:
        raise OperationError(
            "type",
            f"{name}: leave it out; operations get and give images in [0, 1] (in the loader uint8), and each network's "
            "view is normalized after the last one, by its own mean and std",
        )


@dataclass(frozen=True)
class Known:
    """One line of ``augment list``."""

    name: str
    source: str
    what: str
    """The first line of the class's documentation, or why it cannot be loaded."""


def known_operations() -> list[Known]:
    """Every operation that a chain can name without an import path; a broken entry point is listed with its error."""
    operations = [Known(name, "Delta Distill", summary(cls)) for name, cls in _builtin().items()]
    for point in _points(tuple(sys.path)):
        try:
            what = summary(find_class(point.name))
        except OperationError as error:
            what = f"error: {error}"
        operations.append(Known(point.name, _distribution(point), what))
    operations += [Known(name, "kornia", summary(cls)) for name, cls in _kornia().items()]
    return sorted(operations, key=lambda known: (known.source, known.name))


def list_operations(pattern: str = "") -> list[str]:
    """Names of the operations that a recipe can name without an import path: of this package, of plug-ins and kornia's.

    Args:
        pattern: an fnmatch pattern, in either case; empty: all names.

    Returns:
        The names, sorted.

    Example:
        >>> import augment
        >>> augment.list_operations("*ResizedCrop")
        ['RandomResizedCrop']
    """
    return matching({operation.name for operation in known_operations()}, pattern)


def name_of(operation: Any) -> str:
    """The name of a built object's class in a config. Draws are keyed by it, so objects and names draw the same."""
    cls = type(operation)
    if cls in _builtin().values() or cls in _kornia().values():
        return cls.__name__
    package = next((package for package in _TORCHVISION if cls.__module__.startswith(f"{package}.")), cls.__module__)
    return f"{package}:{cls.__qualname__}"


_TORCHVISION = ("torchvision.transforms.v2", "torchvision.transforms")


def wrapper_of(cls: type, name: str) -> Callable[[Any, str], Operation]:
    """The function that makes an :class:`Operation` of an object of ``cls`` and a name.

    Raises:
        OperationError: objects of ``cls`` are no operations.
    """
    from augment.operation import kind_of

    if cls.__module__.startswith(("kornia.", "torchvision.", "albumentations.")):
        refuse_conversion(name)
    wrap = kind_of(cls)
    if wrap is None:
        raise OperationError("type", f"{name} is no operation: it has neither sample() and apply() nor __call__()")
    if cls.__module__.startswith("kornia.augmentation"):
        if cls not in _kornia().values():
            raise OperationError("type", _not_alone(name))
        from augment.kornia_ops.unfused import kornia_operation

        return kornia_operation
    if cls.__module__.startswith("torchvision.transforms"):
        if cls.__name__ in _MIXES:
            raise OperationError("type", f"{name} mixes the images of a batch; that is the setting 'mix'")
        from augment.torchvision_op import TorchvisionOp

        return TorchvisionOp
    return wrap


def _not_alone(name: str) -> str:
    hint = "; for several take Sequential, RandomApply, OneOf or SomeOf" if "Sequential" in name else ""
    return f"{name} is no 2-D augmentation of one image on its own{hint}"


_MIXES = {"MixUp", "CutMix"}


def _builtin() -> dict[str, type]:
    from augment.ops import operations

    return operations()


def _kornia() -> dict[str, type]:
    from augment.kornia_ops.unfused import kornia_classes

    return dict(kornia_classes())


@cache
def _points(search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """The entry points of the packages on ``sys.path``; finding them reads a file of each installed package."""
    return tuple(entry_points(group=GROUP))


def _declared(name: str) -> EntryPoint | None:
    """The entry point of that name; two are an error."""
    points = [point for point in _points(tuple(sys.path)) if point.name == name]
    if len(points) > 1:
        owners = " and ".join(sorted(f"{_distribution(point)} ({point.value})" for point in points))
        raise OperationError("type", f"{name!r} is declared by {owners}; write package.module:Class instead")
    return points[0] if points else None


def _imported(path: str, name: str = "") -> type:
    try:
        return import_class(path)
    except PluginError as error:
        raise OperationError("type", f"{name}: {error}" if name else str(error)) from error


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"


def summary(thing: Any) -> str:
    """The first line of the docstring of a class or function."""
    return (thing.__doc__ or "").strip().split("\n")[0]
