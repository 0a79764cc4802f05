"""albumentations in the loader's workers, before both views.

In YAML they are written like the operations of a chain: ``{type: GaussNoise, std_range: [0.2, 0.3], p: 1}``. An
operation runs on the uint8 canvas (of 16-bit images: on floats in [0, 1]) and must keep its size. Containers (OneOf,
SomeOf, Sequential, Compose …) hold others, with albumentations' own meaning: ``{type: OneOf, transforms: [{type: Blur,
p: 0.5}, ToGray], p: 1}``.

albumentations draws from generators of its own, which a DataLoader copies into every worker: all workers then draw the
same, and every epoch repeats. Here they are reseeded for every sample from its draws (seed, epoch, id), so results
differ by sample and epoch, and do not depend on the number of workers. An unknown argument is an error here; what
albumentations warns of is shown once. Its import does not look for a newer version on the network.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from augment.base import did_you_mean
from augment.base.suggestions import table
from augment.names import OperationError, refuse_conversion
from augment.other_names import LOADER
from augment.recipe import NamedCall, key_of

logger = logging.getLogger(__name__)


class LoaderOp(NamedCall):
    """One albumentations transform or container: its class by name, with the arguments of its constructor."""

    @classmethod
    def attempt(cls, type: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _built(type, arguments)
        for warning in caught:
            _show_once(f"{type}: {str(warning.message).strip()}")
        return arguments

    def build(self) -> Any:
        """The transform; what it warns of was shown when the settings were read."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _built(self.type, self.arguments)


@cache
def _show_once(text: str) -> None:
    logger.warning("data.loader_ops: %s", text)


class LoaderOps:
    """A sequence of transforms that each worker builds at its first image.

    Args:
        ops: the transforms, in order.
        seed: the run's seed.
    """

    def __init__(self, ops: Sequence[LoaderOp], seed: int):
        self.ops, self.seed = tuple(ops), seed
        self._pipeline: Any = None

    def __call__(self, image: np.ndarray, epoch: int, id: str, copy: int = 0) -> np.ndarray:
        """Transform one image.

        Args:
            image: [H, W, 3] uint8, or uint16, which the transforms get as floats in [0, 1].
            epoch: number of the epoch.
            id: stable name of the sample.
            copy: how often the sample came before in the epoch.

        Returns:
            [H, W, 3] of the same size and type.

        Raises:
            OperationError: a transform changed the size or type; the text names the sample.
        """
        if self._pipeline is None:
            self._pipeline = _albumentations().Compose([op.build() for op in self.ops])
            import cv2

            cv2.setNumThreads(0)  # the workers already run in parallel
        seed = loader_seed(self.seed, epoch, id, copy)
        for number, transform in enumerate(_every(self._pipeline)):
            # By itself each: Compose would give them all the same numbers, so that p = 0.5 twice hits the same samples.
            transform.set_random_seed((seed + number * _APART) & 0xFFFFFFFF)
        deep = image.dtype == np.uint16
        given = image.astype(np.float32) / 65535 if deep else image
        result = self._pipeline(image=given)["image"]
        if result.shape != given.shape or result.dtype != given.dtype:
            raise OperationError(
                "type",
                f"{id}: loader_ops {[op.type for op in self.ops]} made {result.dtype} {list(result.shape)}"
                f" of the {given.dtype} {list(image.shape)} canvas; they must keep its type and size",
            )
        return np.rint(result.clip(0, 1) * 65535).astype(np.uint16) if deep else result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}


def loader_seed(seed: int, epoch: int, id: str, copy: int = 0) -> int:
    """A seed for a library's own generator, keyed by sample.

    Args:
        seed: the run's seed.
        epoch: number of the epoch.
        id: stable name of the sample.
        copy: how often the sample came before in the epoch.

    Returns:
        In 0 … 2³² - 1.
    """
    import torch

    from augment.draws import Draws, copy_key, sample_key

    ids = torch.tensor([copy_key(sample_key(id), copy)])
    return int(Draws(seed, epoch, "loader", ids).bits(0)) & 0xFFFFFFFF


_APART = 0x9E3779B9
"""Between the seeds of two transforms."""


def _every(transform: Any) -> Iterator[Any]:
    """A transform and those inside it, outer ones first: setting a container's seed sets those inside too."""
    yield transform
    for member in getattr(transform, "transforms", ()):
        if not hasattr(member, "set_random_seed"):  # functions, in ColorJitter
            return
        yield from _every(member)


def _built(name: str, arguments: dict[str, Any]) -> Any:
    library = _albumentations()
    refuse_conversion(name)
    kinds = (library.ImageOnlyTransform, library.DualTransform, library.BaseCompose)
    known = {
        name: value
        for name, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, kinds) and value not in (*kinds, library.ReplayCompose)
    }
    if name not in known:
        raise OperationError(
            "type", f"albumentations has no transform {name!r}{did_you_mean(name, known, table(LOADER))}"
        )
    parameters = set(inspect.signature(known[name].__init__).parameters) - {"self"}
    for argument in arguments:
        if argument not in parameters:
            raise OperationError(argument, f"{name} has no argument {argument!r}{did_you_mean(argument, parameters)}")
    given = dict(arguments)
    if issubclass(known[name], library.BaseCompose):
        for key in {"transforms", "first", "second"} & set(arguments):
            given[key] = _members(name, key, arguments[key])
    try:
        return known[name](**given)
    except (ValueError, TypeError) as error:
        text, checked = str(error), error.__cause__ or error.__context__
        if isinstance(checked, ValidationError):  # albumentations checks arguments by pydantic
            details = checked.errors()[0]
            text = f"{'.'.join(map(str, details['loc']))}: {details['msg']}, not {details['input']!r:.80}"
        raise OperationError(key_of(error, arguments), f"{name} refuses its arguments: {text}") from error


def _members(name: str, key: str, given: Any) -> Any:
    """The transforms inside a container. Raises ``OperationError`` with the path of the argument at fault."""
    if not isinstance(given, list | tuple):
        if key == "transforms":
            raise OperationError(key, f"{name}: transforms is a list of transforms, not {given!r}")
        return _member(key, given)
    if not given:
        raise OperationError(key, f"{name}: transforms has no transform")
    return [_member(f"{key}.{index}", entry) for index, entry in enumerate(given)]


def _member(path: str, entry: Any) -> Any:
    try:
        op = LoaderOp.model_validate(entry, context=frozenset({"operations"}))
    except ValidationError as error:
        raise OperationError(path, error.errors()[0]["msg"]) from error
    try:
        return _built(op.type, op.arguments)
    except OperationError as error:
        raise OperationError(f"{path}.{error.key}", str(error)) from error


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise the import looks for a newer version
    import albumentations

    return albumentations
