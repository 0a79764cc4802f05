"""Curriculum: sample weights that favor easy samples at first, by the teacher-student gap or the teacher's entropy.

Shape suffixes: B batch of this rank, K classes, N networks of the teacher, V views of the teacher.
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
from distill.objectives.compare import field_of, require_classifier, same_classes
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

    d ≥ 0 in any unit. The weights are equal if the strength is 0 or all d are 0.
    """
    mean = sum_over_ranks(difficulty_B.mean()) / world_size()
    weights_B = (-strength * difficulty_B / mean.clamp_min(_TINY)).exp()
    return weights_B / (sum_over_ranks(weights_B.mean()) / world_size())


class Curriculum(nn.Module):
    """Weights the samples of a batch by their difficulty; from epoch ``epochs`` on, all weights are equal.

    ``w_i ∝ exp(−(1 − r) · sharpness · d_i / mean d)``, where r rises linearly from 0 to 1 over ``epochs``. d is the gap
    between teacher and student, or the teacher's entropy: the mean over the pairs of views, weighted over the networks
    as in the terms. No gradient flows through the weights.

    Self-paced learning (Kumar et al., NeurIPS 2010) excludes the samples above a threshold; here each sample has a
    positive weight.

    Args:
        settings: of ``training.curriculum``.
        student: shapes of the student's outputs.
        teachers: shapes of the outputs of each of the teacher's networks.
        maps: of the networks' classes to the student's.

    Raises:
        ValueError: a network has no classifier, or, with ``by: gap``, its logits are not of the student's classes.
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
        for n, teacher in enumerate(teachers):
            try:
                if settings.by == "gap" and maps[n] is None:
                    same_classes(student, teacher)
                require_classifier(teacher)
            except ValueError as error:
                raise ValueError(f"training.curriculum by the {settings.by}: {error}") from None

    def extra_repr(self) -> str:
        return f"by={self.settings.by}, epochs={self.settings.epochs}, sharpness={self.settings.sharpness:g}"

    def strength(self, step: int, steps_per_epoch: int) -> float:
        """``(1 − r) · sharpness`` at an update, which is counted from 0; 0 from epoch ``epochs`` on."""
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
        """Adds the weights of the samples to the targets.

        Args:
            strength: from :meth:`strength`.
            students: ``students[v]``: outputs for the student's view v.
            teachers: ``teachers[n][v]``: outputs of network n for the teacher's view v.
            pairs: (teacher's view, student's view) that the terms compare.
            batches: ``batches[v]``: targets of the student's view v.
            teacher_weights: [N], or [N, V, B] if they differ by sample.

        Returns:
            ``batches`` with ``weights`` [B], of mean 1 over all ranks.
        """
        weighed = []
        for s, batch in enumerate(batches):
            difficulties = [
                (teacher_weights[n] if teacher_weights.ndim == 1 else teacher_weights[n, t])
                * self._difficulty(n, students[s], views[t])
                for n, views in enumerate(teachers)
                for t, other in pairs
                if other == s
            ]
            # The sum over views does as well as the mean: easy_first is independent of the unit.
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
