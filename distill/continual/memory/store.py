"""What a memory stores: canvases before augmentation, labels, and for distillation the logits on one view.

Shape suffixes: M images, C channels, H W canvas size, K classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.continual.errors import ContinualError
from distill.data.resident import select_rows
from distill.deltas.base import tensor_bytes
from distill.files import write_atomic

HEADER = 1024
"""More bytes than the header of a file has besides the names in it: five tensors with shapes, keys, and padding."""


@dataclass(frozen=True)
class Store:
    """Images in memory, in the order of their selection.

    A view that was augmented with keyed draws is repeated from ``canvases``, ``ids`` and ``view_keys`` (the seed of
    its draws, in epoch 0), so ``logits`` are compared on the very view that they were computed for.
    """

    ids: Tensor
    """[M] int64 sample ids."""
    canvases: Tensor
    """[M, C, H, W] uint8, or uint16 with white at 65535."""
    labels: tuple[str, ...]
    """Class name of each."""
    ranks: Tensor
    """[M] int64, see :class:`Selection <distill.continual.memory.base.Selection>`."""
    view_keys: Tensor | None = None
    """[M] int64."""
    logits: Tensor | None = None
    """[M, K] float32; NaN for a class that the model did not know when the image was stored."""
    logit_classes: tuple[str, ...] = field(default=())
    """Names of the columns of ``logits``."""
    names: tuple[str, ...] = field(default=())
    """Name of each sample, of which its id is the key; empty for images that are not trained on."""

    def __post_init__(self) -> None:
        count, columns = len(self.labels), len(self.logit_classes)
        expected = {
            "ids": (self.ids, torch.int64, [count]),
            "ranks": (self.ranks, torch.int64, [count]),
            "view_keys": (self.view_keys, torch.int64, [count]),
            "logits": (self.logits, torch.float32, [count, columns]),
            "canvases": (self.canvases, self._pixels, [count, *self.canvases.shape[1:]]),
        }
        for name, (tensor, dtype, shape) in expected.items():
            if tensor is not None and (tensor.dtype != dtype or list(tensor.shape) != shape):
                raise ContinualError(f"memory: {name} must be {dtype} {shape}, not {tensor.dtype} {list(tensor.shape)}")
        if self.names and len(self.names) != count:
            raise ContinualError(f"memory: {len(self.names)} names for {count} images")

    @property
    def _pixels(self) -> torch.dtype:
        return torch.uint16 if self.canvases.dtype == torch.uint16 else torch.uint8

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def kept_bytes(self) -> int:
        """Bytes of all tensors."""
        return tensor_bytes(self._tensors().values())

    def take(self, rows: Tensor, ranks: Tensor | None = None) -> Store:
        """Some of the images.

        Args:
            rows: [m] int64 indices.
            ranks: [m] int64 new ranks; None: they keep theirs.

        Returns:
            A store with its own tensors.
        """
        return Store(
            self.ids[rows],
            select_rows(self.canvases, rows),
            tuple(self.labels[row] for row in rows.tolist()),
            self.ranks[rows] if ranks is None else ranks,
            None if self.view_keys is None else self.view_keys[rows],
            None if self.logits is None else self.logits[rows],
            self.logit_classes,
            tuple(self.names[row] for row in rows.tolist()) if self.names else (),
        )

    def joined(self, other: Store) -> Store:
        """These images, then those of ``other``; logits are put side by side by class name, NaN where unknown.

        Raises:
            ContinualError: the canvases differ in shape or depth, or only one of both has logits or view keys.
        """
        if (self.canvases.shape[1:], self.canvases.dtype) != (other.canvases.shape[1:], other.canvases.dtype):
            shapes = [f"{store.canvases.dtype} {list(store.canvases.shape[1:])}" for store in (self, other)]
            raise ContinualError(f"memory: canvases {shapes[0]} cannot be kept beside {shapes[1]}")
        for name in ("logits", "view_keys"):
            if (getattr(self, name) is None) != (getattr(other, name) is None):
                raise ContinualError(f"memory: only some of the images have {name}")
        classes = tuple(dict.fromkeys((*self.logit_classes, *other.logit_classes)))
        return Store(
            torch.cat([self.ids, other.ids]),
            torch.cat([self.canvases, other.canvases]),
            self.labels + other.labels,
            torch.cat([self.ranks, other.ranks]),
            _both(self.view_keys, other.view_keys),
            _both(self.logits_of(classes), other.logits_of(classes)),
            classes,
            self.names + other.names,
        )

    def logits_of(self, classes: Sequence[str]) -> Tensor | None:
        """Logits [M, len(classes)] in the order of ``classes``, NaN where unknown; None without logits."""
        if self.logits is None:
            return None
        columns = dict(zip(self.logit_classes, self.logits.T))
        unknown = self.logits.new_full((len(self),), float("nan"))
        rows = [columns.get(name, unknown) for name in classes]
        return torch.stack(rows, dim=1) if rows else self.logits.new_zeros(len(self), 0)

    def save(self, path: Path) -> str:
        """Write a safetensors file atomically; returns its SHA-256."""
        about = {"labels": json.dumps(self.labels), "logit_classes": json.dumps(self.logit_classes)}
        about["names"] = json.dumps(self.names)
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors().items()}
        return write_atomic(path, safetensors.torch.save(tensors, about))

    @classmethod
    def load(cls, path: Path) -> Store:
        """Read what :meth:`save` wrote; all numbers are equal bit for bit.

        Raises:
            ContinualError: the file cannot be read, or holds something else.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                stored = file.keys()
                tensors, about = {name: file.get_tensor(name) for name in stored}, file.metadata() or {}
            labels, columns, names = (tuple(json.loads(about[key])) for key in ("labels", "logit_classes", "names"))
            return cls(labels=labels, logit_classes=columns, names=names, **tensors)
        except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
            raise ContinualError(f"{path}: no readable memory file ({error})") from error

    def _tensors(self) -> dict[str, Tensor]:
        named = {"ids": self.ids, "canvases": self.canvases, "ranks": self.ranks}
        optional = {"view_keys": self.view_keys, "logits": self.logits}
        return named | {name: tensor for name, tensor in optional.items() if tensor is not None}


def text_bytes(text: str) -> int:
    """Bytes of a name in the list of a file's header, which is JSON inside JSON, with a comma and a space."""
    return len(json.dumps(json.dumps(text)))


def bytes_per_image(canvas: Sequence[int], logit_classes: int = 0, pixel: int = 1) -> int:
    """Bytes of the tensors of one image: canvas, id and rank, and with logits a view key and these.

    Args:
        canvas: shape (C, H, W).
        logit_classes: number of logits; 0: none are stored.
        pixel: bytes of a value, 2 for images of 16 bits.

    Returns:
        Bytes, without those of the file's header: :func:`text_bytes` of its name and class, and ``HEADER``.
    """
    return pixel * math.prod(canvas) + 16 + (8 + 4 * logit_classes if logit_classes else 0)


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.cat([first, second])
