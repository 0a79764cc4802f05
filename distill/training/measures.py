"""Measures of predictions on a labeled split, each with a 95 % interval.

Shape suffixes: N labeled images, K classes, S bins, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from distill.data.base import UNLABELED
from distill.report.items import Estimate
from distill.training.evaluate import Predictions

RESAMPLES = 1000
BINS = 15
TOP = 5
_Z = 1.959964  # the normal distribution's 97.5 % quantile


def measures(predictions: Predictions) -> dict[str, Estimate]:
    """Accuracy, balanced accuracy, macro F1, top-5 accuracy (of more than 5 classes) and expected calibration error.

    ``accuracy`` and ``top5_accuracy`` are fractions of images, with Wilson's interval (1927). The intervals of the
    others come from a bootstrap over images, 1000 resamples with a fixed seed: the 2.5 % and 97.5 % percentiles for
    ``balanced_accuracy`` and ``macro_f1``, and value ± 1.96 standard deviations, within [0, 1], for
    ``calibration_error``, because its resampled values are biased upward. An interval says how much the value depends
    on which images are in the split, not on the seed of the training. If no image is wrong, the bootstrap's width is 0.

    Args:
        predictions: logits [N, K] or log-probabilities; samples without a label are left out.

    Returns:
        Name → estimate; empty where no sample has a label.
    """
    labeled = predictions.labels != UNLABELED
    labels_N = predictions.labels[labeled].numpy()
    if not len(labels_N):
        return {}
    logits = predictions.logits[labeled]
    images, classes = logits.shape
    predicted_N = predictions.classes[labeled].numpy()
    confidence_N = logits.double().softmax(1).amax(1).numpy()
    right_N = predicted_N == labels_N

    bin_N, excess_N = _binned(confidence_N, right_N)
    resampled: list[tuple[np.ndarray, ...]] = []
    for rows_RN in _resamples(images, classes):
        by_class = _by_class(labels_N[rows_RN], predicted_N[rows_RN], classes)
        resampled.append((*by_class, _calibration_error(bin_N[rows_RN], excess_N[rows_RN], BINS)))
    balanced_R, f1_R, error_R = map(np.concatenate, zip(*resampled))

    estimates = {"accuracy": fraction(int(right_N.sum()), images)}
    values = balanced_accuracy(labels_N, predicted_N, classes), macro_f1(labels_N, predicted_N, classes)
    for name, value, value_R in zip(("balanced_accuracy", "macro_f1"), values, (balanced_R, f1_R)):
        low, high = np.quantile(value_R, [0.025, 0.975])
        estimates[name] = Estimate(value=value, low=float(low), high=float(high))
    if classes > TOP:
        among = (logits.topk(TOP, dim=1).indices == predictions.labels[labeled][:, None]).any(1)
        estimates["top5_accuracy"] = fraction(int(among.sum()), images)
    error = calibration_error(confidence_N, right_N)
    half = _Z * float(error_R.std())
    estimates["calibration_error"] = Estimate(value=error, low=max(0.0, error - half), high=min(1.0, error + half))
    return estimates


def balanced_accuracy(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> float:
    """Mean of the accuracies of the classes that have images: each class counts the same, however many images it has.

    Args:
        labels_N: class indices.
        predicted_N: predicted class indices.
        classes: K.

    Returns:
        A fraction, equal to scikit-learn's ``balanced_accuracy_score``.
    """
    return float(_by_class(labels_N[None], predicted_N[None], classes)[0][0])


def macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> float:
    """Mean over classes of ``F1_k = 2 TP_k / (images_k + predicted_k)``; over classes with a label or a prediction.

    Args:
        labels_N: class indices.
        predicted_N: predicted class indices.
        classes: K.

    Returns:
        A fraction, equal to scikit-learn's ``f1_score(average="macro")``, which is 20 times slower: too slow for a
        bootstrap of several models.
    """
    return float(_by_class(labels_N[None], predicted_N[None], classes)[1][0])


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599).

    ``ECE = Σ_s |B_s|/N · |accuracy(B_s) − mean confidence(B_s)|``, where bin ``B_s`` holds the images whose confidence,
    the probability of the predicted class, is in the s-th of ``bins`` intervals of equal width in [0, 1]. With few
    images it is too large even for a calibrated model.

    Args:
        confidence_N: probability of the predicted class, temperature 1.
        right_N: whether it is the label.
        bins: S; 15 as in the paper.

    Returns:
        The error, in [0, 1].
    """
    bin_N, excess_N = _binned(confidence_N, right_N, bins)
    return float(_calibration_error(bin_N[None], excess_N[None], bins)[0])


def _resamples(images: int, classes: int) -> Iterator[np.ndarray]:
    """The rows [R, N] of all resamples, as many at once as need about 8 MB; the same for all models, so paired."""
    generator = np.random.default_rng(0)
    at_once = max(1, 1_000_000 // max(images, classes, BINS))
    for first in range(0, RESAMPLES, at_once):
        yield generator.integers(0, images, (min(at_once, RESAMPLES - first), images))


def _by_class(labels_RN: np.ndarray, predicted_RN: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Balanced accuracy and macro F1 of each row of images, [R]."""
    images_RK = _count(labels_RN, classes)
    right_RK = _count(np.where(labels_RN == predicted_RN, labels_RN, classes), classes + 1)[:, :classes]
    total_RK = images_RK + _count(predicted_RN, classes)
    recall_RK = right_RK / np.maximum(images_RK, 1)
    f1_RK = 2 * right_RK / np.maximum(total_RK, 1)
    return recall_RK.sum(1) / (images_RK > 0).sum(1), f1_RK.sum(1) / (total_RK > 0).sum(1)


def _binned(confidence_N: np.ndarray, right_N: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each image, and by how much its answer is better than its confidence."""
    return np.minimum((confidence_N * bins).astype(int), bins - 1), right_N - confidence_N


def _calibration_error(bin_RN: np.ndarray, excess_RN: np.ndarray, bins: int) -> np.ndarray:
    """The calibration error of each row of images, [R]."""
    return np.abs(_count(bin_RN, bins, excess_RN)).sum(1) / bin_RN.shape[1]


def _count(index_RN: np.ndarray, size: int, weights_RN: np.ndarray | None = None) -> np.ndarray:
    """How often each index below ``size`` is in each row, or the sum of its weights: [R, size]."""
    rows = len(index_RN)
    place_RN = index_RN + size * np.arange(rows)[:, None]
    weights = None if weights_RN is None else weights_RN.ravel()
    return np.bincount(place_RN.ravel(), weights, rows * size).reshape(rows, size)


def fraction(count: int, images: int) -> Estimate:
    """``count`` of ``images`` with the 95 % Wilson interval."""
    p, z2 = count / images, _Z**2
    center = (p + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z / (1 + z2 / images) * math.sqrt(p * (1 - p) / images + z2 / (4 * images**2))
    return Estimate(value=p, low=max(0.0, center - half), high=min(1.0, center + half))
