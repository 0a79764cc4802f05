"""The base class of self-supervised objectives that compare the projected features of two views of the student."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import ClassVar

import torch
from torch import Tensor

from distill.models.features import Features
from distill.objectives.base import Targets
from distill.objectives.projector import Projecting
from distill.objectives.views import ViewsObjective, fields_of_views


class ProjectedViewsObjective(Projecting, ViewsObjective):
    """The mean of ``loss_of_pair`` over all pairs of the student's views; needs no teacher and no labels.

    A subclass creates ``projector`` and implements ``loss_of_pair``.

    Class attributes:
        ordered: whether the two orders of a pair are pairs of their own, for a loss that is not symmetric.
    """

    reads_teacher: ClassVar[bool] = False
    ordered: ClassVar[bool] = False

    def loss_of_pair(self, first_BP: Tensor, second_BP: Tensor) -> Tensor:
        """The loss of the projected features of two views of the same images, a scalar with a graph to both."""
        raise NotImplementedError

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features] | None, batch: Targets) -> Tensor:
        views = [self.projector(view_BD) for view_BD in fields_of_views(student, "pooled")]
        pairs = permutations(views, 2) if self.ordered else combinations(views, 2)
        return torch.stack([self.loss_of_pair(*pair) for pair in pairs]).mean()
