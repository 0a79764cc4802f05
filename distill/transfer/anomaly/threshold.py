"""The threshold of anomaly scores from held-out normal images, and what it does on others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def threshold(scores_N: Tensor, false_alarms: float) -> float:
    """The score that a new normal image exceeds with at most this probability.

    The ``⌈(1 − α)(N + 1)⌉``-th smallest score of N held-out normal images, as in split conformal prediction; the
    largest where N is too small for α, whose rate is then 1 / (N + 1).

    >>> import torch
    >>> from distill.transfer.anomaly.threshold import threshold
    >>> threshold(torch.arange(1.0, 100.0), 0.1)
    90.0

    Args:
        scores_N: of normal images that the method was not fitted on.
        false_alarms: α.

    Returns:
        The threshold.
    """
    place = math.ceil((1 - false_alarms) * (len(scores_N) + 1))
    return float(scores_N.sort().values[min(place, len(scores_N)) - 1])


def least_rate(held_out: int) -> float:
    """The smallest rate of false alarms that so many held-out images can tell."""
    return 1 / (held_out + 1)


@dataclass(frozen=True)
class AnomalyScores:
    """What a detector does on images that were not used for it. None: no such image.

    Args:
        auroc: probability that an anomalous image has a larger score than a normal one.
        false_alarms: fraction of normal images above the threshold.
        detected: fraction of anomalous images above the threshold.
    """

    auroc: float | None
    false_alarms: float | None
    detected: float | None

    @classmethod
    def of(cls, scores: Tensor, is_normal: np.ndarray, limit: float) -> AnomalyScores:
        """Compare scores [N] with which images are normal, bool [N]."""
        from sklearn.metrics import roc_auc_score

        above = (scores > limit).numpy()
        both = bool(is_normal.any() and not is_normal.all())
        return cls(
            float(roc_auc_score(~is_normal, scores.numpy())) if both else None,
            float(above[is_normal].mean()) if is_normal.any() else None,
            float(above[~is_normal].mean()) if not is_normal.all() else None,
        )


def finite(scores: Tensor) -> bool:
    return bool(torch.isfinite(scores).all())
