"""Measures of predictions: the values of scikit-learn and torchmetrics, with intervals that cover the true value."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from distill.data.base import UNLABELED
from distill.report.items import MEASURES
from distill.training.evaluate import Predictions
from distill.training.measures import RESAMPLES, balanced_accuracy, calibration_error, fraction, macro_f1, measures


def predictions_of(images: int, classes: int, seed: int = 0, signal: float = 1.0) -> Predictions:
    """Imbalanced: class 0 has half of the images, and the last class none."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes - 1, (images,), generator=generator)
    labels[: images // 2] = 0
    logits = 2 * torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += signal
    return Predictions(logits, labels, torch.arange(images))


@pytest.mark.parametrize("classes", [3, 12])
def test_values_are_those_of_the_libraries(classes: int) -> None:
    predictions = predictions_of(300, classes)
    labels, classes_of = predictions.labels.numpy(), predictions.classes.numpy()
    estimates = measures(predictions)
    assert list(estimates) == [name for name in MEASURES if classes > 5 or name != "top5_accuracy"]
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert estimates["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(labels, classes_of))
    assert estimates["accuracy"].value == pytest.approx(predictions.accuracy())
    assert estimates["macro_f1"].value == pytest.approx(f1_score(labels, classes_of, average="macro"))
    reference = multiclass_calibration_error(predictions.logits.double().softmax(1), predictions.labels, classes, 15)
    assert estimates["calibration_error"].value == pytest.approx(float(reference), abs=1e-6)
    if classes > 5:
        top = top_k_accuracy_score(labels, predictions.logits.numpy(), k=5, labels=range(classes))
        assert estimates["top5_accuracy"].value == pytest.approx(top)
    for estimate in estimates.values():
        assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    assert measures(predictions) == estimates, "the bootstrap has a fixed seed"


def test_by_hand() -> None:
    """Four images, three of class 0: it is right on two of them, and on the one of class 1."""
    logits = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    estimates = measures(Predictions(logits, torch.tensor([0, 0, 0, 1]), torch.arange(4)))
    assert estimates["accuracy"].value == 0.75
    assert estimates["balanced_accuracy"].value == pytest.approx((2 / 3 + 1) / 2)
    assert estimates["macro_f1"].value == pytest.approx((4 / 5 + 2 / 3) / 2)
    confidence = torch.tensor(1.0).sigmoid().item()
    assert estimates["calibration_error"].value == pytest.approx(0.75 - confidence, abs=1e-6)
    assert calibration_error(np.array([1.0, 1.0, 0.0]), np.array([True, False, False])) == pytest.approx(1 / 3)


def test_samples_without_a_label_count_nowhere() -> None:
    predictions = predictions_of(40, 6)
    more = Predictions(
        torch.cat([predictions.logits, torch.zeros(9, 6)]),
        torch.cat([predictions.labels, torch.full((9,), UNLABELED)]),
        torch.arange(49),
    )
    assert measures(more) == measures(predictions)
    assert measures(Predictions(torch.zeros(9, 6), torch.full((9,), UNLABELED), torch.arange(9))) == {}


def test_wilson_is_that_of_scipy() -> None:
    for count, images in ((50, 100), (10, 10), (0, 10), (1, 1), (349, 359)):
        low, high = binomtest(count, images).proportion_ci(0.95, "wilson")
        estimate = fraction(count, images)
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((count / images, low, high), abs=1e-6)


@pytest.mark.slow
def test_the_bootstrap_covers_the_value_of_the_population() -> None:
    """Of 20 splits, nearly all intervals hold the value that a split of 20,000 images has."""
    whole = predictions_of(20_000, 4, seed=1)
    true = {
        "balanced_accuracy": balanced_accuracy(whole.labels.numpy(), whole.classes.numpy(), 4),
        "macro_f1": macro_f1(whole.labels.numpy(), whole.classes.numpy(), 4),
    }
    of_splits = [measures(predictions_of(200, 4, seed=10 + n)) for n in range(20)]
    for name, value in true.items():
        assert sum(estimates[name].low <= value <= estimates[name].high for estimates in of_splits) >= 17, name


def test_one_class_one_image_and_infinite_logits() -> None:
    single = measures(Predictions(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64), torch.arange(1)))
    assert single["balanced_accuracy"].value == single["macro_f1"].value == 1 and RESAMPLES == 1000
    logits = torch.tensor([[0.0, -torch.inf], [-1.0, -2.0]])  # log-probabilities of a teacher without the second class
    estimates = measures(Predictions(logits, torch.tensor([0, 1]), torch.arange(2)))
    assert all(np.isfinite([e.value, e.low, e.high]).all() for e in estimates.values())
