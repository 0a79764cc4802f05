"""How much each network of the teacher counts: fixed, by sample, or learned.

Shape suffixes: B batch, K classes, N networks of the teacher, V views that the teacher sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.data.base import UNLABELED
from distill.models.features import Features
from distill.models.label_map import LabelMaps
from distill.models.settings import WeightingSettings
from distill.objectives.base import Targets
from distill.objectives.compare import field_of


def by_sample(log_q_NB: Tensor, prior_N: Tensor, temperature: float) -> Tensor:
    """[N, B] weights in proportion to ``prior · q^(1/T)``, of sum 1 over the networks.

    A network with ``log q = −∞`` gets none; where all have, each gets its prior.
    """
    known_B = (log_q_NB > -torch.inf).any(0)
    scores_NB = (log_q_NB / temperature).where(known_B, 0.0)
    return (scores_NB + prior_N.log()[:, None]).softmax(0)


def log_confidence(logits_BK: Tensor) -> Tensor:
    """[B] ``log max_k p_k``, p the softmax."""
    return F.log_softmax(logits_BK.float(), 1).amax(1)


def log_agreement(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """[B] ``log p_y``; −∞ where there is no label among these classes."""
    log_p_B = F.log_softmax(logits_BK.float(), 1).gather(1, labels_B.clamp(min=0)[:, None])[:, 0]
    return log_p_B.masked_fill(labels_B == UNLABELED, -torch.inf)


class TeacherWeights(nn.Module):
    """The weights of the teacher's networks in every term that reads the teacher; see :class:`WeightingSettings`.

    ``confidence`` asks each network about the classes that it shares with the student. ``agreement`` is in the spirit
    of CA-MKD (Zhang et al., ICASSP 2022, arXiv 2201.00007), where a network's weight falls with its cross-entropy;
    there it is ``(1 − softmax(CE)) / (N − 1)`` over the networks, here ``softmax(−CE / T)``, which leaves a network
    that is wrong as little as T says. Of a mixed image, ``log q`` is the mean over its labels by their parts; where
    one of them is unknown to a network, the image is as one without a label to it.

    Args:
        settings: type and temperature.
        priors: the networks' weights, of sum 1.
        maps: of the networks' classes.
    """

    prior: Tensor
    preference: Tensor

    def __init__(self, settings: WeightingSettings, priors: Sequence[float], maps: LabelMaps):
        super().__init__()
        self.settings = settings
        self.maps = maps
        prior_N = torch.tensor(priors)
        self.register_buffer("prior", prior_N, persistent=False)
        # The a of ``learned``: the only thing here that training changes.
        self.register_buffer("preference", prior_N.log(), persistent=settings.type == "learned")
        self._last = prior_N

    @property
    def per_sample(self) -> bool:
        return self.settings.type in ("confidence", "agreement")

    @torch.no_grad()
    def forward(self, teachers: Sequence[Sequence[Features]], batch: Targets) -> Tensor:
        """[N] of sum 1, or [N, V, B] of sum 1 over N if they are by sample.

        Args:
            teachers: ``teachers[n][v]``: of network n, for view v.
            batch: labels, and for mixed images those of the partner. Shares are those of the student's view: the
                teacher's differ from it by what the border of a pasted box rounds to.
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
        """Take over what a meta step made of the preference; it counts from the next step on."""
        self.preference.copy_(preference_N)

    def metrics(self) -> dict[str, Tensor]:
        """``teacher_weight/n`` of the last step, the mean over its samples; nothing where they are fixed."""
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
