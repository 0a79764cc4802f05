"""albumentations in the loader's workers, before both views.

In YAML they are written like the operations of a chain: ``{type: GaussNoise, std_range: [0.2, 0.3], p: 1}``. An
operation runs on the uint8 canvas and must keep its size.

albumentations draws from generators of its own, which a DataLoader copies into every worker: all workers then draw the
same, and every epoch repeats. Here they are reseeded for every sample from its draws (seed, epoch, id), so results
differ by sample and epoch, and do not depend on the number of workers. An unknown argument, or a value that
albumentations would replace with a warning, is an error here. Its import does not look for a newer version on the
network.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from augment.base import did_you_mean
from augment.base.suggestions import table
from augment.names import OperationError
from augment.other_names import LOADER
from augment.recipe import NamedCall


class LoaderOp(NamedCall):
    """One albumentations transform: its class by name, with the arguments of its constructor."""

    @classmethod
    def attempt(cls, type: str, arguments: dict[str, Any]) -> None:
        _built(type, arguments)

    def build(self) -> Any:
        """The transform."""
        return _built(self.type, self.arguments)


class LoaderOps:
    """A sequence of transforms that each worker builds at its first image.

    Args:
        ops: the transforms, in order.
        seed: the run's seed.
    """

    def __init__(self, ops: Sequence[LoaderOp], seed: int):
        self.ops, self.seed = tuple(ops), seed
        self._pipeline: Any = None

    def __call__(self, image: np.ndarray, epoch: int, id: str) -> np.ndarray:
        """Transform one image.

        Args:
            image: [H, W, 3] uint8.
            epoch: number of the epoch.
            id: stable name of the sample.

        Returns:
            [H, W, 3] uint8, of the same size.

        Raises:
            OperationError: a transform changed the size or type; the text names the sample.
        """
        if self._pipeline is None:
            self._pipeline = _albumentations().Compose([op.build() for op in self.ops])
            import cv2

            cv2.setNumThreads(0)  # the workers already run in parallel
        self._pipeline.set_random_seed(loader_seed(self.seed, epoch, id))
        result = self._pipeline(image=image)["image"]
        if result.shape != image.shape or result.dtype != np.uint8:
            raise OperationError(
                "type",
                f"{id}: loader_ops {[op.type for op in self.ops]} made {result.dtype} {list(result.shape)}"
                f" of the uint8 {list(image.shape)} canvas; they must keep its type and size",
            )
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}


def loader_seed(seed: int, epoch: int, id: str) -> int:
    """A seed for a library's own generator, keyed by sample.

    Args:
        seed: the run's seed.
        epoch: number of the epoch.
        id: stable name of the sample.

    Returns:
        In 0 … 2³² - 1.
    """
    import torch

    from augment.draws import Draws, sample_key

    ids = torch.tensor([sample_key(id)])
    return int(Draws(seed, epoch, "loader", ids).bits(0)) & 0xFFFFFFFF


def _built(name: str, arguments: dict[str, Any]) -> Any:
    library = _albumentations()
    known = {
        name: value
        for name, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.ImageOnlyTransform | library.DualTransform)
    }
    if name not in known:
        raise OperationError(
            "type", f"albumentations has no transform {name!r}{did_you_mean(name, known, table(LOADER))}"
        )
    parameters = set(inspect.signature(known[name].__init__).parameters) - {"self"}
    for argument in arguments:
        if argument not in parameters:
            raise OperationError(argument, f"{name} has no argument {argument!r}{did_you_mean(argument, parameters)}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # it warns of invalid values and replaces them
        try:
            return known[name](**arguments)
        except (ValueError, TypeError, UserWarning) as error:
            raise OperationError("type", f"{name} refuses its arguments: {error}") from error


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise the import looks for a newer version
    import albumentations

    return albumentations
