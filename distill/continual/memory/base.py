"""The base class of memories: from the images that are at hand, which ones to keep within a budget.

After each task the candidates are the images in memory and those of the task. ``select`` is a function of the
candidates alone, so that nothing but the images themselves has to be carried over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

import augment.base
from augment.base import Component
from distill.continual.errors import ContinualError
from distill.deltas.rank_settings import parse_bytes


@dataclass(frozen=True)
class Candidates:
    """Images of which a memory keeps some."""

    ids: Tensor
    """[N] int64 sample ids, each once."""
    labels: Sequence[str]
    """Class name of each."""
    features: Tensor | None = None
    """[N, D], for memories that read them."""
    ranks: Tensor | None = None
    """[N] int64, the rank that an earlier selection gave to an image in memory; −1 for one that is not in memory.
    None: none of them is."""

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.dtype != torch.int64 or len(self.labels) != len(self.ids):
            raise ContinualError(
                f"candidates need int64 ids [N] and N labels, got {self.ids.dtype} {list(self.ids.shape)} and "
                f"{len(self.labels)} labels"
            )
        if len(self.ids.unique()) != len(self.ids):
            raise ContinualError("an image is twice among the candidates of a memory (equal ids)")

    def by_class(self) -> dict[str, Tensor]:
        """Class name → its rows [n] int64, by name and within a class by id, whatever the order of the candidates."""
        rows = defaultdict(list)
        for row in self.ids.argsort().tolist():
            rows[self.labels[row]].append(row)
        return {name: torch.tensor(rows[name]) for name in sorted(rows)}


@dataclass(frozen=True)
class Selection:
    """Images that a memory keeps."""

    rows: Tensor
    """[M] int64 indices into the candidates; the best of each class first, or of all."""
    ranks: Tensor
    """[M] int64: 0 for the best of its class (or of all). A smaller budget keeps the lowest ranks."""


class Memory(Component):
    """A rule that selects the images to keep.

    Class attributes:
        needs_features: whether it reads the candidates' features.
    """

    class Settings(augment.base.Settings):
        type: str
        budget: int | str = Field(description="number of images, or bytes of its file with a unit: 2000, 2MB, 512KiB")
        batch_share: float = Field(
            0.5, gt=0, lt=1, description="fraction of a training batch that is of the memory, from the second task on"
        )
        logits: bool = Field(
            False, description="keep the logits of each image on one view too, which every second draw shows: for der"
        )

        @field_validator("budget")
        @classmethod
        def _images_or_bytes(cls, value: int | str) -> int | str:
            if isinstance(value, str) and (value.strip().isdigit() or parse_bytes(value) < 1):
                raise ValueError("expected a number of images, or at least one byte with a unit, such as 2000 or 2MB")
            if isinstance(value, int) and value < 1:
                raise ValueError("must be at least one image")
            return value

    settings: Settings
    needs_features: ClassVar[bool] = False

    def __init__(self, settings: Settings):
        self.settings = settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings if k != 'type')})"

    def capacity(self, bytes_per_image: int, classes: int, fixed: int = 0) -> int:
        """Number of images that the budget holds.

        Args:
            bytes_per_image: of all that is stored for an image, see ``store.bytes_per_image``.
            classes: number of classes that will share it.
            fixed: bytes that are stored whatever the number of images.

        Returns:
            The number.

        Raises:
            ContinualError: it holds fewer images than there are classes.
        """
        budget = self.settings.budget
        images = budget if isinstance(budget, int) else max(0, parse_bytes(budget) - fixed) // bytes_per_image
        if images < max(1, classes):
            size = "" if isinstance(budget, int) else f" of {bytes_per_image:,} bytes each"
            raise ContinualError(
                f"memory.budget: {budget} holds {images} images{size}, fewer than one for each of {classes} classes"
            )
        return images

    def select(self, candidates: Candidates, capacity: int) -> Selection:
        """The images to keep.

        Args:
            candidates: the images in memory and those of the task.
            capacity: the largest number of images, from ``capacity``.

        Returns:
            At most ``capacity`` images. They depend on the set of candidates, not on its order.

        Raises:
            ContinualError: there are fewer places than classes, or features are needed and missing.
        """
        classes = len(set(candidates.labels))
        if capacity < classes:
            raise ContinualError(f"a memory of {capacity} images cannot hold one for each of {classes} classes")
        if self.needs_features and candidates.features is None:
            raise ContinualError(f"memory {self.settings.type} reads features of the candidates")
        return self._select(candidates, capacity)

    def _select(self, candidates: Candidates, capacity: int) -> Selection:
        raise NotImplementedError


def quotas(classes: Sequence[str], capacity: int) -> dict[str, int]:
    """Places of each class: ``⌊capacity / K⌋``, and one more for the first classes by name while some are left.

    More classes or a smaller capacity never give a class more places, so a memory can shrink to them. Places that a
    class with few images does not fill stay empty.

    Args:
        classes: names.
        capacity: places altogether.

    Returns:
        Name → places.
    """
    each, left = divmod(capacity, len(classes)) if classes else (0, 0)
    return {name: each + (position < left) for position, name in enumerate(sorted(classes))}


def joined(chosen: Sequence[Tensor]) -> Selection:
    """The selection of each class, best first, as a whole."""
    ranks = [torch.arange(len(rows)) for rows in chosen]
    empty = torch.zeros(0, dtype=torch.int64)
    return Selection(torch.cat([empty, *chosen]), torch.cat([empty, *ranks]))
