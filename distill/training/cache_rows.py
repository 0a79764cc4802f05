"""Encodes a teacher's outputs for one sample as a row of bytes, and decodes them.

A row holds, for each network n and view v of the teacher: the logits [K] (field ``logits.n.v``), or the k largest of
them with their classes (``classes.n.v``) and one number for all others; and the pooled features [D] (``pooled.n.v``).

Shape suffixes: B batch, K classes, k classes that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from augment.base import UserError
from distill.models.features import Features, FeatureShapes
from distill.models.teacher_settings import CacheSettings

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_NUMPY = {torch.float16: "<f2", torch.float32: "<f4", torch.int16: "<i2", torch.int32: "<i4"}


class CacheError(UserError, RuntimeError):
    """The teacher's cache cannot be used or written; the text names the folder and what would work."""


def top_logits(logits_BK: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits and one value for all others, [B, k + 1], and the classes of the k largest, [B, k].

    ``rest = log(Σ_others exp(z) / (K − k))``: at temperature 1 the kept classes keep their exact probabilities, and the
    rest of the probability is spread evenly over the other classes. At other temperatures this is an approximation.
    """
    top_Bk, classes_Bk = logits_BK.topk(k)
    others_B = logits_BK.scatter(1, classes_Bk, -torch.inf).logsumexp(1)
    rest_B = others_B - math.log(logits_BK.shape[1] - k)
    return torch.cat([top_Bk, rest_B[:, None]], dim=1), classes_Bk


def from_top(values_Bk1: Tensor, classes_Bk: Tensor, classes: int) -> Tensor:
    """Logits rebuilt from the output of :func:`top_logits`.

    Args:
        values_Bk1: the k largest logits, then the value of each other class.
        classes_Bk: classes of the k largest.
        classes: K.

    Returns:
        Logits [B, K].
    """
    return values_Bk1[:, -1:].repeat(1, classes).scatter_(1, classes_Bk.long(), values_Bk1[:, :-1])


class RowLayout:
    """The fields of a row: their names, dtypes and widths.

    Args:
        shapes: of the outputs of each of the teacher's networks.
        views: number of views of a sample that the teacher gets.
        settings: which outputs to keep, and their dtype.

    Raises:
        CacheError: ``logits`` is not smaller than the number of classes, or there are no logits to keep.
    """

    def __init__(self, shapes: Sequence[FeatureShapes], views: int, settings: CacheSettings):
        self.shapes, self.views, self.settings = tuple(shapes), views, settings
        self.value = DTYPES[settings.dtype]
        fields: dict[str, tuple[torch.dtype, int]] = {}
        for n, of_network in enumerate(self.shapes):
            k, classes = settings.logits, of_network.classes
            if k != "none" and not classes:
                raise CacheError("teacher.cache.logits: the teacher has no classifier; set none, and pooled to true")
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
        """Field → values [B, width] of ``features[n][v]`` (network n, view v), on their device."""
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
        """``features[n][v]`` in fp32 from the fields that :meth:`encode` returns."""
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
        """Rows [B] of ``self.dtype`` from fields on the CPU."""
        rows = np.empty(len(next(iter(fields.values()))), self.dtype)
        for name, values in fields.items():
            rows[name] = values.numpy()
        return rows

    def unpack(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Fields of rows [B], on the device; copies to a GPU are asynchronous."""
        fields = {name: torch.from_numpy(np.ascontiguousarray(rows[name])) for name in self.fields}
        if device.type == "cuda":
            fields = {name: values.pin_memory().to(device, non_blocking=True) for name, values in fields.items()}
        return fields
