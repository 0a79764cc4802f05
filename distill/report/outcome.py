"""Compares student and baseline on the test split: by class, by confusion, by image.

Shape suffixes: N labeled test images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.report.summary import RunSummary


@dataclass(frozen=True)
class Outcome:
    """Two models' predictions for the same labeled images."""

    labels_N: np.ndarray
    student_N: np.ndarray
    baseline_N: np.ndarray
    classes: tuple[str, ...]

    @property
    def present_K(self) -> np.ndarray:
        """Whether the test split has an image of the class."""
        return np.bincount(self.labels_N, minlength=len(self.classes)) > 0

    @property
    def change_K(self) -> np.ndarray:
        """Accuracy of the student minus the baseline's by class; NaN for a class without test images."""
        return class_accuracy(self.labels_N, self.student_N, len(self.classes)) - class_accuracy(
            self.labels_N, self.baseline_N, len(self.classes)
        )

    @property
    def confusion_KK(self) -> np.ndarray:
        """Change in the number of images from baseline to student; row: true class, column: predicted class."""
        k = len(self.classes)
        return confusion(self.labels_N, self.student_N, k) - confusion(self.labels_N, self.baseline_N, k)

    @property
    def mended(self) -> int:
        """Images that the student gets right and the baseline wrong."""
        return int(((self.student_N == self.labels_N) & (self.baseline_N != self.labels_N)).sum())

    @property
    def broken(self) -> int:
        """Images that the student gets wrong and the baseline right."""
        return int(((self.student_N != self.labels_N) & (self.baseline_N == self.labels_N)).sum())


def outcome(summary: RunSummary) -> Outcome | None:
    """Predictions of student and baseline for the labeled test images; None if labels or predictions are missing."""
    chosen = [summary.predictions.get(name, ()) for name in (summary.student, summary.baseline)]
    labels_N = np.asarray(summary.labels, dtype=np.int64)
    labeled_N = labels_N >= 0
    if not labeled_N.any() or not all(chosen):
        return None
    student_N, baseline_N = (np.asarray(indices, dtype=np.int64)[labeled_N] for indices in chosen)
    return Outcome(labels_N[labeled_N], student_N, baseline_N, summary.classes)


def class_accuracy(labels_N: np.ndarray, predictions_N: np.ndarray, classes: int) -> np.ndarray:
    """Accuracy by class.

    Args:
        labels_N: class indices.
        predictions_N: predicted class indices; -1 is none.
        classes: K.

    Returns:
        Fractions [K]; NaN for a class without images.
    """
    images_K = np.bincount(labels_N, minlength=classes).astype(float)
    right_K = np.bincount(labels_N[labels_N == predictions_N], minlength=classes)
    return np.divide(right_K, images_K, out=np.full(classes, np.nan), where=images_K > 0)


def confusion(labels_N: np.ndarray, predictions_N: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix.

    Args:
        labels_N: class indices.
        predictions_N: predicted class indices; -1 (none) is not counted.
        classes: K.

    Returns:
        Counts [K, K]: row true class, column predicted class.
    """
    given_N = predictions_N >= 0
    cells_N = labels_N[given_N] * classes + predictions_N[given_N]
    return np.bincount(cells_N, minlength=classes**2).reshape(classes, classes)
