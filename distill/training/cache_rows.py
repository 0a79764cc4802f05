"""What a teacher said of one sample as a row of bytes, and back.

A row holds, for every network n and view v of the teacher: its logits [K] (field ``logits.n.v``), or the ``top`` k of
them with their classes and one number for the rest, and its pooled features [D] (``pooled.n.v``).

Shape suffixes: B batch, K classes, k of them that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from augment.base import UserError
from distill.models.features import Features, FeatureShapes
from distill.models.settings import CacheSettings

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_NUMPY = {torch.float16: "<f2", torch.float32: "<f4", torch.int16: "<i2", torch.int32: "<i4"}


class CacheError(UserError, RuntimeError):
    """The teacher's cache cannot be used or written; the text names the folder, and what would work."""


def top_logits(logits_BK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits, then the one that stands for each of the others: [B, k + 1]; and their classes [B, k].

    ``rest = log(Σ_others exp(z) / (K − k))``: at temperature 1 the kept classes have the very probabilities that they
    had, and what is left of the mass is spread evenly over the others. At other temperatures that is an approximation.
    """
    top_Bk, classes_Bk = logits_BK.topk(k)
    others_B = logits_BK.scatter(1, classes_Bk, -torch.inf).logsumexp(1)
    rest_B = others_B - math.log(logits_BK.shape[1] - k)
    return torch.cat([top_Bk, rest_B[:, None]], dim=1), classes_Bk


def from_top(values_Bk1: Tensor, classes_Bk: Tensor, classes: int) -> Tensor:
    """Logits [B, K] of what :func:`top_logits` has kept."""
    return values_Bk1[:, -1:].repeat(1, classes).scatter_(1, classes_Bk.long(), values_Bk1[:, :-1])


class RowLayout:
    """Which bytes of a row are what.

    Args:
        shapes: of each network of the teacher.
        views: how many the teacher sees of a sample.
        settings: what to keep.

    Raises:
        CacheError: more classes are to be kept than there are.
    """

    def __init__(self, shapes: Sequence[FeatureShapes], views: int, settings: CacheSettings):
        self.shapes, self.views, self.settings = tuple(shapes), views, settings
        self.value = DTYPES[settings.dtype]
        fields: dict[str, tuple[torch.dtype, int]] = {}
        for n, of_network in enumerate(self.shapes):
            k, classes = settings.logits, of_network.classes
            if isinstance(k, int) and k >= classes:
                raise CacheError(
                    f"teacher.cache.logits: {k} of {classes} classes cannot be the top ones; use full, or fewer"
                )
            for v in range(views):
                if k == "full":
                    fields[f"logits.{n}.{v}"] = self.value, classes
                elif isinstance(k, int):
                    fields[f"logits.{n}.{v}"] = self.value, k + 1
                    fields[f"classes.{n}.{v}"] = torch.int16 if classes <= 2**15 else torch.int32, k
                if settings.pooled:
                    fields[f"pooled.{n}.{v}"] = self.value, of_network.pooled
        self.fields = fields
        self.dtype = np.dtype([(name, _NUMPY[kind], (width,)) for name, (kind, width) in fields.items()])

    def encode(self, features: Sequence[Sequence[Features]]) -> dict[str, Tensor]:
        """Field → [B, width], on the device of ``features[n][v]``."""
        fields: dict[str, Tensor] = {}
        for n, of_network in enumerate(features):
            for v, seen in enumerate(of_network):
                if isinstance(self.settings.logits, int):
                    assert seen.logits is not None
                    values, classes = top_logits(seen.logits, self.settings.logits)
                    fields[f"logits.{n}.{v}"], fields[f"classes.{n}.{v}"] = values, classes
                elif self.settings.logits == "full":
                    assert seen.logits is not None
                    fields[f"logits.{n}.{v}"] = seen.logits
                if self.settings.pooled:
                    assert seen.pooled is not None
                    fields[f"pooled.{n}.{v}"] = seen.pooled
        return {name: fields[name].to(kind) for name, (kind, _) in self.fields.items()}

    def decode(self, fields: Mapping[str, Tensor]) -> list[list[Features]]:
        """``features[n][v]`` in fp32 of what :meth:`encode` made."""
        return [
            [self._features(fields, f"{n}.{v}", shapes.classes) for v in range(self.views)]
            for n, shapes in enumerate(self.shapes)
        ]

    def _features(self, fields: Mapping[str, Tensor], of: str, classes: int) -> Features:
        features = Features()
        if self.settings.logits != "none":
            logits = fields[f"logits.{of}"].float()
            top = isinstance(self.settings.logits, int)
            features.logits = from_top(logits, fields[f"classes.{of}"], classes) if top else logits
        if self.settings.pooled:
            features.pooled = fields[f"pooled.{of}"].float()
        return features

    def pack(self, fields: Mapping[str, Tensor]) -> np.ndarray:
        """Rows [B] of ``dtype`` from fields on the CPU."""
        rows = np.empty(len(next(iter(fields.values()))), self.dtype)
        for name, values in fields.items():
            rows[name] = values.numpy()
        return rows

    def unpack(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Fields of rows [B], on the device; a copy to a GPU is not waited for."""
        fields = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in self.fields}
        if device.type == "cuda":
            fields = {name: values.pin_memory().to(device, non_blocking=True) for name, values in fields.items()}
        return fields
