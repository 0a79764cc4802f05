"""The base classes of heads: ``Head.fit(sums) → FittedHead``, which gives logits of features.

Use: ``sums = head.new_sums(D)``; ``head.update(sums, features, labels, names)`` for each batch of each task; then
``head.fit(sums)`` at any time. ``shared.HeadSums`` does so for several heads, with the sums that they share kept once.

Shape suffixes: N images, D feature width, M width after the head's map, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import augment.base
from augment.base import Component
from distill.continual.errors import ContinualError
from distill.continual.heads.sums import Moments, Sums
from distill.deltas.base import tensor_bytes

NEVER = -1e30
"""Logit of a class without an image: finite, and below every logit that a head computes."""


@dataclass(frozen=True)
class LabeledFeatures:
    """Features of held-out images with their labels."""

    features: Tensor
    """[N, D], as the network gives them."""
    labels: Tensor
    """[N] int64 indices into ``names``; negative: no label."""
    names: tuple[str, ...]


class FittedHead:
    """A classifier of features. Each image's logits depend on its own features only."""

    classes: tuple[str, ...]
    """Names of the columns of the logits."""

    def logits(self, features_ND: Tensor) -> Tensor:
        """Logits [N, K] float32 on the device of the features, which may have any float dtype.

        They are computed on the CPU in float64, so that the size of the batch does not show in float32.
        """
        return self.scores(features_ND.detach().cpu().double()).float().to(features_ND.device)

    def scores(self, features_ND: Tensor) -> Tensor:
        """Logits [N, K] float64 of float64 features."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """What prediction reads, in float32 and by name. Tensors that follow from a seed are left out."""
        raise NotImplementedError

    @property
    def served_bytes(self) -> int:
        """Bytes of :meth:`tensors`."""
        return tensor_bytes(self.tensors().values())

    def for_classes(self, classes: Sequence[str]) -> FittedHead:
        """The same head with columns in the order of ``classes``.

        Classes that are left out get no logit (the mask of a task-incremental evaluation). One that has no image yet
        gets ``NEVER``: it is not predicted while there is another.
        """
        return _Reordered(self, tuple(classes))


class _Reordered(FittedHead):
    def __init__(self, head: FittedHead, classes: tuple[str, ...]):
        self.head, self.classes = head, classes

    def scores(self, features_ND: Tensor) -> Tensor:
        columns = dict(zip(self.head.classes, self.head.scores(features_ND).T))
        never = features_ND.new_full((len(features_ND),), NEVER)
        rows = [columns.get(name, never) for name in self.classes]
        return torch.stack(rows, dim=1) if rows else features_ND.new_zeros(len(features_ND), 0)

    def tensors(self) -> dict[str, Tensor]:
        return self.head.tensors()


class Head(Component):
    """A classifier that is fitted from sums in closed form: without an optimizer, an order or a batch size.

    A subclass implements ``_fit``; one that reads other features than the network's implements ``map`` and
    ``mapped_width``.

    Class attributes:
        paper: short citation.
        moments: second moments that its sums keep.
    """

    class Settings(augment.base.Settings):
        type: str
        name: str | None = Field(
            None, min_length=1, description="of this head in tables and files, for several of one type; none: the type"
        )

        @property
        def shown(self) -> str:
            """Its name in tables and files."""
            return self.name or self.type

    paper: ClassVar[str] = ""
    moments: ClassVar[Moments] = "common"

    def __init__(self, settings: Settings):
        self.settings = settings

    def __repr__(self) -> str:
        own = ", ".join(f"{key}={value!r}" for key, value in self.settings if key not in ("type", "name"))
        return f"{type(self).__name__}({own})"

    @property
    def sums_key(self) -> str:
        """Name of the features that are summed; heads with the same key and width read the same sums."""
        return "features"

    @property
    def sums_moments(self) -> Moments:
        """Second moments that its sums keep: ``moments``, unless the settings choose."""
        return self.moments

    @property
    def needs(self) -> frozenset[Literal["held_out", "held_out_sums"]]:
        """Which arguments of ``fit`` it cannot do without."""
        return frozenset()

    def mapped_width(self, width: int) -> int:
        """M, the width of what ``map`` gives for features of a width D."""
        return width

    def map(self, features_ND: Tensor) -> Tensor:
        """The features [N, M] that the head is linear (or Gaussian) in."""
        return features_ND

    def classifier(self, tensors: Mapping[str, Tensor], width: int) -> nn.Module | None:
        """A module that takes the place of a network's classifier, to serve a fitted head that is not linear.

        Args:
            tensors: of the fitted head, see :meth:`FittedHead.tensors`.
            width: D, of the network's features.

        Returns:
            Features [N, D] → logits [N, K]; None for a linear head, whose rows become those of the classifier.
        """
        return None

    def new_sums(self, width: int) -> Sums:
        """Empty sums for features of a width D."""
        return Sums(self.mapped_width(width), self.sums_moments)

    def update(self, sums: Sums, features_ND: Tensor, labels_N: Tensor, names: Sequence[str]) -> None:
        """Add images to sums of this head.

        Args:
            sums: from ``new_sums``.
            features_ND: as the network gives them.
            labels_N: int64 indices into ``names``; negative: no label, and the image is left out.
            names: of the classes that the labels count.

        Raises:
            ContinualError: see :meth:`Sums.add <distill.continual.heads.sums.Sums.add>`.
        """
        sums.add(self.map(features_ND), labels_N, names)

    def fit(self, sums: Sums, held_out: LabeledFeatures | None = None, held_out_sums: Sums | None = None) -> FittedHead:
        """The head of all images in ``sums``, which stay as they are.

        Args:
            sums: of this head, with at least one image.
            held_out: images that are not in ``sums``, if the settings choose by their accuracy.
            held_out_sums: sums of this head over such images, if the settings choose by their squared error.

        Returns:
            A classifier of the classes in ``sums``, in their order (sorted by name).

        Raises:
            ContinualError: there is no image, the second moments are missing, or held-out images that are needed.
        """
        name = self.settings.type
        if not sums.images:
            raise ContinualError(f"the head {name} cannot be fitted without an image")
        if self.sums_moments not in ("none", sums.moments):
            raise ContinualError(f"the head {name} needs sums with moments {self.sums_moments!r}, not {sums.moments!r}")
        given = {"held_out": held_out, "held_out_sums": held_out_sums}
        for argument in sorted(self.needs):
            if given[argument] is None:
                raise ContinualError(f"the head {name} chooses by held-out images, and there are none ({argument})")
        return self._fit(sums, held_out, held_out_sums)

    def _fit(self, sums: Sums, held_out: LabeledFeatures | None, held_out_sums: Sums | None) -> FittedHead:
        raise NotImplementedError
