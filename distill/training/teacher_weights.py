"""The weight of each network of the teacher: fixed, by sample, or learned.

Shape suffixes: B batch, K classes, N networks of the teacher, V views of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.base import UNLABELED
from distill.models.features import Features, FeatureShapes
from distill.models.label_map import LabelMaps
from distill.models.teacher_settings import WeightingSettings
from distill.objectives.base import Targets
from distill.objectives.compare import field_of, require_classifier


def by_sample(log_q_NB: Tensor, prior_N: Tensor, temperature: float) -> Tensor:
    """Weights in proportion to ``prior · q^(1/T)``, of sum 1 over the networks.

    A network with ``log q = −∞`` gets 0; if all networks of a sample have it, each gets its prior.

    Args:
        log_q_NB: log of q.
        prior_N: weights of sum 1.
        temperature: T.

    Returns:
        Weights [N, B].
    """
    known_B = (log_q_NB > -torch.inf).any(0)
    scores_NB = (log_q_NB / temperature).where(known_B, 0.0)
    return (scores_NB + prior_N.log()[:, None]).softmax(0)


def log_confidence(logits_BK: Tensor) -> Tensor:
    """[B] ``log max_k p_k``, p the softmax."""
    return F.log_softmax(logits_BK.float(), 1).amax(1)


def log_agreement(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """[B] ``log p_y``; −∞ where a sample has no label."""
    log_p_B = F.log_softmax(logits_BK.float(), 1).gather(1, labels_B.clamp(min=0)[:, None])[:, 0]
    return log_p_B.masked_fill(labels_B == UNLABELED, -torch.inf)


class TeacherWeights(nn.Module):
    """The weights of the teacher's networks in every term that reads the teacher; see :class:`WeightingSettings`.

    ``confidence`` uses the classes that a network shares with the student. ``agreement`` follows CA-MKD (Zhang et al.,
    ICASSP 2022, arXiv 2201.00007), where the weight of a network falls with its cross-entropy; there it is
    ``(1 − softmax(CE)) / (N − 1)`` over the networks, here ``softmax(−CE / T)``, so T controls how little weight a
    wrong network keeps. For a mixed image, ``log q`` is the mean over its two labels, weighted by their fractions; if a
    network lacks the class of either, it treats the image as unlabeled.

    Args:
        settings: type and temperature.
        priors: the networks' weights, of sum 1.
        maps: of the networks' classes to the student's.
        shapes: of the networks' outputs.

    Raises:
        ValueError: a network whose logits decide its weight has no classifier.
    """

    prior: Tensor
    preference: Tensor

    def __init__(
        self, settings: WeightingSettings, priors: Sequence[float], maps: LabelMaps, shapes: Sequence[FeatureShapes]
    ):
        super().__init__()
        for n, of_network in enumerate(shapes if settings.by_sample else ()):
            try:
                require_classifier(of_network)
            except ValueError as error:
                raise ValueError(f"teacher.weighting: {settings.type}, network {n}: {error}") from None
        self.settings = settings
        self.maps = maps
        prior_N = torch.tensor(priors)
        self.register_buffer("prior", prior_N, persistent=False)
        # The a of ``learned``, the only tensor here that training changes.
        self.register_buffer("preference", prior_N.log(), persistent=settings.type == "learned")
        self._last = prior_N

    def extra_repr(self) -> str:
        return f"type={self.settings.type}, networks={len(self.prior)}"

    @torch.no_grad()
    def forward(self, teachers: Sequence[Sequence[Features]], batch: Targets) -> Tensor:
        """The weights for a batch.

        Args:
            teachers: ``teachers[n][v]``: outputs of network n for view v.
            batch: labels, and for mixed images the partners' labels and λ. λ is that of the student's view; the
                teacher's view differs from it only by rounding the pasted box to whole pixels.

        Returns:
            [N] of sum 1, or [N, V, B] of sum 1 over N if the weights differ by sample.
        """
        if self.settings.type == "fixed":
            return self.prior
        if self.settings.type == "learned":
            weights_N = self.preference.softmax(0)
            self._last = weights_N
            return weights_N
        log_q_NVB = torch.stack(
            [torch.stack([self._log_q(n, view, batch) for view in views]) for n, views in enumerate(teachers)]
        )
        flat = log_q_NVB.flatten(1)
        teacher_weights = by_sample(flat, self.prior, self.settings.temperature)
        self._last = teacher_weights.mean(1)
        return teacher_weights.view_as(log_q_NVB)

    def learn(self, preference_N: Tensor) -> None:
        """Set the preference [N] to the result of a meta step; it takes effect from the next step on."""
        self.preference.copy_(preference_N)

    def metrics(self) -> dict[str, Tensor]:
        """``teacher_weight/n`` of the last step, averaged over its samples; empty if the weights are fixed."""
        if self.settings.type == "fixed":
            return {}
        return {f"teacher_weight/{n}": weight for n, weight in enumerate(self._last)}

    def _log_q(self, n: int, features: Features, batch: Targets) -> Tensor:
        logits_BK, labels_B, mixed_B = field_of("teacher", features, "logits"), batch.labels, batch.mixed_labels
        if (map_ := self.maps[n]) is not None:
            logits_BK, labels_B = map_.of_teacher(logits_BK), map_.labels(labels_B)
            mixed_B = None if mixed_B is None else map_.labels(mixed_B)
        if self.settings.type == "confidence":
            return log_confidence(logits_BK)
        own_B = log_agreement(logits_BK, labels_B)
        if mixed_B is None:
            return own_B
        other_B = log_agreement(logits_BK, mixed_B)
        unknown_B = own_B.isinf() | other_B.isinf()
        return (batch.mix_lambda * own_B + (1 - batch.mix_lambda) * other_B).masked_fill(unknown_B, -torch.inf)
