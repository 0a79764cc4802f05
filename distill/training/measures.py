"""Measures of predictions on a labeled split, each with a 95 % interval.

Shape suffixes: N labeled images, K classes, S bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

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

    def resampled(measure: Callable[..., tuple[float, ...]], *columns: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(0)  # the same resamples for all models: paired
        draws = (generator.integers(0, images, images) for _ in range(RESAMPLES))
        return np.array([measure(*(column[rows] for column in columns)) for rows in draws])

    def by_class(labels_N: np.ndarray, predicted_N: np.ndarray) -> tuple[float, ...]:
        return balanced_accuracy(labels_N, predicted_N, classes), macro_f1(labels_N, predicted_N, classes)

    estimates = {"accuracy": fraction(int(right_N.sum()), images)}
    values = by_class(labels_N, predicted_N)
    lows, highs = np.quantile(resampled(by_class, labels_N, predicted_N), [0.025, 0.975], axis=0)
    for name, *estimate in zip(("balanced_accuracy", "macro_f1"), values, lows, highs):
        estimates[name] = Estimate(**dict(zip(("value", "low", "high"), map(float, estimate))))
    if classes > TOP:
        among = (logits.topk(TOP, dim=1).indices == predictions.labels[labeled][:, None]).any(1)
        estimates["top5_accuracy"] = fraction(int(among.sum()), images)
    error = calibration_error(confidence_N, right_N)
    half = _Z * float(resampled(lambda *columns: (calibration_error(*columns),), confidence_N, right_N).std())
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
    images_K = np.bincount(labels_N, minlength=classes)
    right_K = np.bincount(labels_N[labels_N == predicted_N], minlength=classes)
    present = images_K > 0
    return float((right_K[present] / images_K[present]).mean())


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
    right_K = np.bincount(labels_N[labels_N == predicted_N], minlength=classes)
    total_K = np.bincount(labels_N, minlength=classes) + np.bincount(predicted_N, minlength=classes)
    present = total_K > 0
    return float((2 * right_K[present] / total_K[present]).mean())


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
    bin_N = np.minimum((confidence_N * bins).astype(int), bins - 1)
    difference_S = np.bincount(bin_N, weights=right_N - confidence_N, minlength=bins)
    return float(np.abs(difference_S).sum() / len(confidence_N))


def fraction(count: int, images: int) -> Estimate:
    """``count`` of ``images`` with the 95 % Wilson interval."""
    p, z2 = count / images, _Z**2
    center = (p + z2 / (2 * images)) / (1 + z2 / images)
    half = _Z / (1 + z2 / images) * math.sqrt(p * (1 - p) / images + z2 / (4 * images**2))
    return Estimate(value=p, low=max(0.0, center - half), high=min(1.0, center + half))
