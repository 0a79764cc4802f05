"""The contract of an objective: ``forward(student, teacher, labels) → scalar tensor`` with a graph."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from augment.settings import Settings
from distill.data.base import UNLABELLED
from distill.models.features import Features, FeatureShapes
from distill.registry import Component

__all__ = ["UNLABELLED", "Objective"]


class Objective(nn.Module, Component):
    """One term of the loss.

    The training step sums ``weight · forward(...)`` over all terms and logs each under its name. With several
    teachers, a term that reads the teacher is built once per teacher (each with projectors of its own) and summed with
    the teachers' weights; with several views it is averaged over the pairs that the view policy declares.

    A term's own parameters (projectors, temperatures, banks) are trained with the student and never exported. Every
    term computes in fp32, whatever autocast says, and returns a tensor attached to the student's graph even when a
    batch gives it nothing to do (no labelled sample, say): a zero, not a constant.

    Class attributes:
        needs: which fields of ``Features`` it reads, of ``{"logits", "pooled", "maps"}``.
        reads_teacher: whether it needs a teacher at all.
        no_weight_decay: names of its parameters that must not decay (temperatures, scales); norms and biases are
            excluded anyway.
    """

    class Settings(Settings):
        type: str
        weight: float = Field(1.0, ge=0, description="factor of this term in the sum")

    needs: ClassVar[frozenset[str]] = frozenset({"logits"})
    reads_teacher: ClassVar[bool] = True
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, settings: Settings, student: FeatureShapes, teacher: FeatureShapes | None):
        """Build projectors from the shapes that the two networks report; ``teacher`` is None without one.

        Raises:
            ValueError: the two cannot be compared; the text says which shapes met.
        """
        super().__init__()
        self.settings = settings

    def forward(self, student: Features, teacher: Features | None, labels: Tensor) -> Tensor:
        """The unweighted term.

        Args:
            student: outputs for the student's view.
            teacher: outputs for the teacher's view of the same samples, without gradient.
            labels: [B] int64, ``UNLABELLED`` where a sample has none.
        """
        raise NotImplementedError
