"""albumentations on the loader's side, for those who want CPU-side operations; both views then start from its output.

An operation runs on the uint8 canvas and must keep its size. albumentations draws from generators of its own, which a
DataLoader copies into every worker: all workers then draw the same, and every epoch repeats. Here they are reseeded
for every sample from (seed, epoch, id), so results differ by sample and epoch and not by the number of workers.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from pydantic import Field, ValidationInfo, model_validator

from augment.settings import Settings, nearest, on_trust
from distill.data.base import DataError


class LoaderOp(Settings):
    """One albumentations transform: its class name and the arguments of its constructor."""

    op: str
    arguments: dict[str, Any] = Field({}, description="as in albumentations' own documentation")

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> LoaderOp:
        if not on_trust(info, "operations"):
            self.build()
        return self

    def build(self) -> Any:
        """The transform. Raises ``ValueError``: no such class or argument, or a value that it refuses."""
        library = _albumentations()
        known = {
            name: value
            for name, value in vars(library).items()
            if inspect.isclass(value) and issubclass(value, library.ImageOnlyTransform | library.DualTransform)
        }
        if self.op not in known:
            raise ValueError(f"albumentations has no transform {self.op!r}{nearest(self.op, known)}")
        parameters = set(inspect.signature(known[self.op].__init__).parameters) - {"self"}
        for argument in self.arguments:
            if argument not in parameters:
                raise ValueError(f"{self.op} has no argument {argument!r}{nearest(argument, parameters)}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # it warns of bad values and goes on with others
            try:
                return known[self.op](**self.arguments)
            except (ValueError, TypeError, UserWarning) as error:
                raise ValueError(f"{self.op}: {error}") from error


class LoaderOps:
    """A sequence of transforms that is built in each worker at its first image."""

    def __init__(self, ops: Sequence[LoaderOp], seed: int):
        self.ops, self.seed = tuple(ops), seed
        self._pipeline: Any = None

    def __call__(self, image: np.ndarray, epoch: int, id: str) -> np.ndarray:
        """uint8 [size, size, 3] → the same. Raises ``DataError`` if an operation changes size or type."""
        if self._pipeline is None:
            self._pipeline = _albumentations().Compose([op.build() for op in self.ops])
            import cv2

            cv2.setNumThreads(0)  # the workers are the parallelism
        digest = sha256(f"{self.seed}/{epoch}/{id}".encode()).digest()
        self._pipeline.set_random_seed(int.from_bytes(digest[:4], "big"))
        result = self._pipeline(image=image)["image"]
        if result.shape != image.shape or result.dtype != np.uint8:
            raise DataError(
                f"{id}: loader_ops {[op.op for op in self.ops]} made {result.dtype} {list(result.shape)}"
                f" of the uint8 {list(image.shape)} canvas; they must keep it"
            )
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipeline": None}


def _albumentations() -> Any:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else the import asks the network for its newest version
    import albumentations

    return albumentations
