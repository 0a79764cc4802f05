"""Easy samples first: weights of samples by the gap between teacher and student, or by the teacher's doubt.

Shape suffixes: B batch of this rank, K classes, N networks of the teacher, V views that the teacher sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMaps
from distill.objectives.base import Targets
from distill.objectives.compare import field_of, same_classes
from distill.objectives.ranks import sum_over_ranks, world_size
from distill.training.settings import CurriculumSettings

_TINY = torch.finfo(torch.float32).tiny


def gap(student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
    """[B] ``KL(softmax(z_t) ‖ softmax(z_s))`` in nats."""
    log_s, log_t = F.log_softmax(student_BK, 1), F.log_softmax(teacher_BK, 1)
    return F.kl_div(log_s, log_t, log_target=True, reduction="none").sum(1)


def entropy(teacher_BK: Tensor) -> Tensor:
    """[B] entropy of ``softmax(z_t)`` in nats."""
    return torch.special.entr(teacher_BK.softmax(1)).sum(1)


def easy_first(difficulty_B: Tensor, strength: float) -> Tensor:
    """[B] weights ``exp(−strength · d / mean d)``, of mean 1; both means are over the batch of all ranks.

    d ≥ 0 in any unit. Weights are equal where the strength is 0, or all d are 0.
    """
    mean = sum_over_ranks(difficulty_B.mean()) / world_size()
    weights_B = (-strength * difficulty_B / mean.clamp_min(_TINY)).exp()
    return weights_B / (sum_over_ranks(weights_B.mean()) / world_size())


class Curriculum(nn.Module):
    """Weights the samples of a batch, ever more evenly until ``epochs`` have passed; then it does nothing.

    ``w_i ∝ exp(−(1 − r) · sharpness · d_i / mean d)`` with r rising linearly from 0 to 1. d is the gap between teacher
    and student, or the teacher's entropy: the mean over the views that are compared, weighed over the networks as the
    terms weigh them. No gradient flows through the weights.

    Self-paced learning (Kumar et al., NeurIPS 2010) leaves samples above a threshold out; here every sample counts a
    little.

    Raises:
        ValueError: ``by: gap`` with a network whose logits are not of the student's classes.
    """

    def __init__(
        self,
        settings: CurriculumSettings,
        student: FeatureShapes,
        teachers: Sequence[FeatureShapes],
        maps: LabelMaps,
    ):
        super().__init__()
        self.settings = settings
        self.maps = maps
        if settings.by == "gap":
            for n, teacher in enumerate(teachers):
                if maps[n] is None:
                    try:
                        same_classes(student, teacher)
                    except ValueError as error:
                        raise ValueError(f"training.curriculum by the gap: {error}") from None

    def strength(self, step: int, steps_per_epoch: int) -> float:
        """(1 − r) · sharpness."""
        rest = max(0.0, 1 - step / steps_per_epoch / self.settings.epochs)
        return rest * self.settings.sharpness

    @torch.no_grad()
    def forward(
        self,
        strength: float,
        students: Sequence[Features],
        teachers: Sequence[Sequence[Features]],
        pairs: Sequence[tuple[int, int]],
        batches: Sequence[Targets],
        teacher_weights: Tensor,
    ) -> list[Targets]:
        """The batches of the student's views with weights; arguments as of ``Term.forward``."""
        weighed = []
        for s, batch in enumerate(batches):
            difficulties = [
                (teacher_weights[n] if teacher_weights.ndim == 1 else teacher_weights[n, t])
                * self._difficulty(n, students[s], views[t])
                for n, views in enumerate(teachers)
                for t, other in pairs
                if other == s
            ]
            # A sum over views in the place of their mean: easy_first takes any unit.
            weighed.append(replace(batch, weights=easy_first(torch.stack(difficulties).sum(0), strength)))
        return weighed

    def _difficulty(self, n: int, student: Features, teacher: Features) -> Tensor:
        if (map_ := self.maps[n]) is not None:
            student, teacher = map_.features(student, teacher)
        teacher_BK = field_of("teacher", teacher, "logits")
        return (
            entropy(teacher_BK)
            if self.settings.by == "entropy"
            else gap(field_of("student", student, "logits"), teacher_BK)
        )
