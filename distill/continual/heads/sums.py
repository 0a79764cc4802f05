"""Sums of features, from which heads are fitted without the images.

``n_c`` images of each class, ``S = Σ f yᵀ`` [D, K] with one-hot labels y, and ``G = Σ f fᵀ`` [D, D], in float64. Sums
of parts of the data add up to those of the whole, whatever the order, the batches and the parts: a head that is fitted
after a stream of tasks is the one that is fitted on all of its data at once (within rounding, 1e-6 relative).

Columns are named after classes and sorted by name. A class that is new gets a column; nothing needs to know the number
of classes beforehand.

Shape suffixes: N images, D feature width, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distill.continual.errors import ContinualError
from distill.deltas.base import tensor_bytes
from distill.files import write_atomic

Moments = Literal["none", "common", "class"]
ROWS = 4096
"""Images whose products are computed together, so that a large batch needs no copy of it in float64."""


@dataclass
class Sums:
    """Sums of the features of labeled images, by class.

    Args:
        width: D.
        moments: second moments to keep. ``common``: G over all classes · ``class``: G of each class, K · D² numbers ·
            ``none``: only counts and first moments.

    ``add`` grows it image by image, ``+`` and ``-`` combine the sums of parts.

    >>> import torch
    >>> from distill.continual.heads.sums import Sums
    >>> sums = Sums(2)
    >>> sums.add(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([1, 0, 1]), ["oak", "ash"])
    >>> sums.classes, sums.counts.tolist()
    (('ash', 'oak'), [2, 1])
    >>> sums.firsts.T.tolist()
    [[6.0, 8.0], [3.0, 4.0]]
    """

    width: int
    moments: Moments = "common"
    classes: tuple[str, ...] = field(default=(), init=False)
    """Names of the classes that have an image, sorted."""
    counts: Tensor = field(init=False)
    """n [K] int64."""
    firsts: Tensor = field(init=False)
    """S [D, K] float64."""
    seconds: Tensor = field(init=False)
    """G [D, D] float64; [K, D, D] with ``moments="class"``, [0, 0] with ``"none"``."""

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ContinualError(f"sums need features of at least one number, got a width of {self.width}")
        self.counts = torch.zeros(0, dtype=torch.int64)
        self.firsts = torch.zeros(self.width, 0, dtype=torch.float64)
        shape = {"none": (0, 0), "common": (self.width, self.width), "class": (0, self.width, self.width)}
        self.seconds = torch.zeros(shape[self.moments], dtype=torch.float64)

    @property
    def images(self) -> int:
        """N, images over all classes."""
        return int(self.counts.sum())

    @property
    def means(self) -> Tensor:
        """μ [D, K] float64, mean of each class."""
        return self.firsts / self.counts

    @property
    def kept_bytes(self) -> int:
        """Bytes of the tensors, as they are saved."""
        return tensor_bytes([self.counts, self.firsts, self.seconds])

    def add(self, features_ND: Tensor, labels_N: Tensor, names: Sequence[str]) -> None:
        """Add images.

        Args:
            features_ND: features, of any float dtype and on any device.
            labels_N: int64 indices into ``names``; negative: no label, and the image is left out.
            names: of the classes that the labels count.

        Raises:
            ContinualError: shapes do not fit, a label has no name, or a feature is not finite. Nothing is added.
        """
        if features_ND.ndim != 2 or features_ND.shape[1] != self.width or labels_N.shape != features_ND.shape[:1]:
            raise ContinualError(
                f"expected features [N, {self.width}] and labels [N], got {list(features_ND.shape)} and "
                f"{list(labels_N.shape)}"
            )
        features_ND, labels_N = features_ND.detach().cpu(), labels_N.cpu()
        labeled = labels_N >= 0
        if not labeled.all():
            features_ND, labels_N = features_ND[labeled], labels_N[labeled]
        if not len(labels_N):
            return
        if int(labels_N.max()) >= len(names):
            raise ContinualError(f"label {int(labels_N.max())} has no name: there are {len(names)}")
        if not features_ND.isfinite().all():
            raise ContinualError("a feature is not finite; sums with it would give no head any more")
        present, columns_N = labels_N.unique(return_inverse=True)
        present_names = [names[label] for label in present.tolist()]
        self._grow(present_names)
        columns_N = torch.tensor([self.classes.index(name) for name in present_names])[columns_N]
        for rows, columns in zip(features_ND.split(ROWS), columns_N.split(ROWS)):
            self._add(rows.double(), columns)

    def _add(self, features_ND: Tensor, columns_N: Tensor) -> None:
        self.counts += torch.bincount(columns_N, minlength=len(self.classes))
        self.firsts.T.index_add_(0, columns_N, features_ND)
        if self.moments == "common":
            self.seconds.addmm_(features_ND.T, features_ND)
        elif self.moments == "class":
            for column in columns_N.unique().tolist():
                rows = features_ND[columns_N == column]
                self.seconds[column].addmm_(rows.T, rows)

    def __iadd__(self, other: Sums) -> Self:
        """Add the sums of other images."""
        return self._combine(other, 1)

    def __isub__(self, other: Sums) -> Self:
        """Take away the sums of images that were added before. A class without any image left is dropped.

        Raises:
            ContinualError: a class of ``other`` has more images than this.
        """
        here = dict(zip(self.classes, self.counts.tolist()))
        for name, count in zip(other.classes, other.counts.tolist()):
            if count > here.get(name, 0):
                raise ContinualError(f"{count} images of class {name!r} cannot be subtracted from {here.get(name, 0)}")
        self._combine(other, -1)
        self._drop_empty()
        return self

    def __add__(self, other: Sums) -> Sums:
        total = self.copy()
        total += other
        return total

    def __sub__(self, other: Sums) -> Sums:
        rest = self.copy()
        rest -= other
        return rest

    def copy(self) -> Sums:
        """Sums that do not change with these."""
        other = Sums(self.width, self.moments)
        other.classes, other.counts = self.classes, self.counts.clone()
        other.firsts, other.seconds = self.firsts.clone(), self.seconds.clone()
        return other

    def require_like(self, other: Sums, what: object) -> None:
        """Raises ``ContinualError`` unless these can be added to ``other``; ``what`` names these in its text."""
        if (self.width, self.moments) != (other.width, other.moments):
            raise ContinualError(
                f"{what}: of width {self.width} with moments {self.moments!r}, expected width {other.width} with "
                f"moments {other.moments!r}"
            )

    def first_moments_of(self, classes: Sequence[str]) -> Tensor:
        """S [D, len(classes)] float64 in the order of ``classes``; zero for a class without an image."""
        columns = dict(zip(self.classes, self.firsts.T))
        zero = self.firsts.new_zeros(self.width)
        return torch.stack([columns.get(name, zero) for name in classes], dim=1)

    def save(self, path: Path) -> str:
        """Write a safetensors file atomically; returns its SHA-256."""
        tensors = {"counts": self.counts, "firsts": self.firsts.contiguous(), "seconds": self.seconds}
        about = {"classes": json.dumps(self.classes), "moments": self.moments}
        return write_atomic(path, safetensors.torch.save(tensors, about))

    @classmethod
    def load(cls, path: Path) -> Sums:
        """Read what :meth:`save` wrote; the numbers are equal bit for bit.

        Raises:
            ContinualError: the file cannot be read or holds something else.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                names = file.keys()
                tensors, about = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
            sums = cls(tensors["firsts"].shape[0], about["moments"])  # type: ignore[arg-type]
            sums.classes = tuple(json.loads(about["classes"]))
            sums.counts, sums.firsts, sums.seconds = (tensors[name] for name in ("counts", "firsts", "seconds"))
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise ContinualError(f"{path}: no readable file of sums ({error})") from error
        return sums

    def _combine(self, other: Sums, sign: Literal[1, -1]) -> Self:
        other.require_like(self, "the other sums")
        self._grow(other.classes)
        columns = torch.tensor([self.classes.index(name) for name in other.classes], dtype=torch.int64)
        self.counts.index_add_(0, columns, other.counts, alpha=sign)
        self.firsts.index_add_(1, columns, other.firsts, alpha=sign)
        if self.moments == "class":
            self.seconds.index_add_(0, columns, other.seconds, alpha=sign)
        else:
            self.seconds.add_(other.seconds, alpha=sign)
        return self

    def _grow(self, names: Iterable[str]) -> None:
        """Make columns for the classes that have none yet."""
        classes = sorted({*self.classes, *names})
        if len(classes) == len(self.classes):
            return
        columns = torch.tensor([classes.index(name) for name in self.classes], dtype=torch.int64)
        counts, firsts = self.counts.new_zeros(len(classes)), self.firsts.new_zeros(self.width, len(classes))
        self.counts = counts.index_copy_(0, columns, self.counts)
        self.firsts = firsts.index_copy_(1, columns, self.firsts)
        if self.moments == "class":
            seconds = self.seconds.new_zeros(len(classes), self.width, self.width)
            self.seconds = seconds.index_copy_(0, columns, self.seconds)
        self.classes = tuple(classes)

    def _drop_empty(self) -> None:
        """Remove the columns of classes without an image."""
        columns = self.counts.nonzero().flatten()
        self.classes = tuple(self.classes[column] for column in columns.tolist())
        self.counts, self.firsts = self.counts[columns], self.firsts[:, columns]
        if self.moments == "class":
            self.seconds = self.seconds[columns]
