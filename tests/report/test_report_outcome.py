import numpy as np
import pytest

from distill.report.html import confusions
from distill.report.outcome import class_accuracy, confusion, outcome


def test_by_class_and_by_image_on_paper(run):
    actual = outcome(run)
    np.testing.assert_allclose(actual.change_K, [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(actual.confusion_KK, [[1, -1, 0], [-1, 1, 0], [-1, 1, 0]])
    assert (actual.mended, actual.broken) == (2, 0)


def test_the_confusions_that_change_most(run):
    rows = confusions(outcome(run))
    assert rows[0] == {"true": "rose", "answer": "tulip", "before": 1, "after": 0}
    assert {"true": "daisy", "answer": "tulip", "before": 0, "after": 1} in rows and len(rows) == 4


def test_unlabeled_images_count_nowhere(run):
    part = run.model_copy(update={"labels": (-1, -1, -1, 1, -1, -1)})
    actual = outcome(part)
    assert actual.present_K.tolist() == [False, True, False]
    np.testing.assert_array_equal(np.isnan(actual.change_K), [True, False, True])
    assert actual.change_K[1] == 1 and (actual.mended, actual.broken) == (1, 0)


@pytest.mark.parametrize("missing", [{"labels": ()}, {"predictions": {}}, {"labels": (-1,) * 6}, {"baseline": "other"}])
def test_no_comparison_without_its_parts(run, missing):
    update = {"predictions": {}, **missing} if missing == {"labels": ()} else missing
    assert outcome(run.model_copy(update=update)) is None


def test_counts_match_a_plain_loop():
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 5, 50), generator.integers(-1, 5, 50)
    counts = np.zeros((5, 5), dtype=int)
    for label, prediction in zip(labels, predictions):
        if prediction >= 0:
            counts[label, prediction] += 1
    np.testing.assert_array_equal(confusion(labels, predictions, 5), counts)
    images = np.bincount(labels, minlength=5)
    np.testing.assert_allclose(class_accuracy(labels, predictions, 5), counts.diagonal() / images)
