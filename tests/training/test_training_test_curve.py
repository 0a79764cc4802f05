"""``training.test_every``: the test split beside training, seen by the record and by nothing else."""

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_training import STEPS, assert_bit_equal, experiment, raising, student_fit

from distill.report.curves import read_curves
from distill.report.items import Row
from distill.run.stage import StageError
from distill.stages.outputs import TrainedStudent
from distill.training.evaluate import Predictions
from distill.training.fit import FitSummary
from distill.training.signals import Interrupted
from distill.training.test_curve import TestCurve


def fit(folder: Path, **training: Any):
    return student_fit(experiment(folder.parent, training=training), folder)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch):
    """Replaces the accuracy of each look by a given one."""

    before = TestCurve.__init__

    def with_accuracies(*accuracies: float) -> None:
        left = iter(accuracies)

        def init(self: TestCurve, predict, metrics, every: int) -> None:
            def of_our_own() -> Predictions:
                right = round(100 * next(left))
                labels = torch.zeros(100, dtype=torch.int64)
                logits = torch.eye(2)[(torch.arange(100) >= right).long()]
                return Predictions(logits, labels, torch.arange(100))

            before(self, of_our_own, metrics, every)

        monkeypatch.setattr(TestCurve, "__init__", init)

    return with_accuracies


@pytest.mark.slow
def test_nothing_is_chosen_by_it(tmp_path: Path) -> None:
    """Weights, validation and the epoch that is kept are those of a fit that never saw the test split."""
    without = fit(tmp_path / "without", keep="best").summary
    plain = student_fit(experiment(tmp_path, training={"keep": "best"}), tmp_path / "without")
    watched = fit(tmp_path / "with", keep="best", test_every=1)
    assert_bit_equal(plain.weights, watched.weights)
    assert without and watched.summary and without.best_on_test is None
    assert (without.best_epoch, without.scores) == (watched.summary.best_epoch, watched.summary.scores)
    assert watched.summary.tested_epochs == [0, 1] and len(watched.summary.test_accuracies) == 2
    logged = read_curves(tmp_path / "with" / "log.csv")["test/accuracy"]
    assert logged.epochs == (0, 1) and list(logged.values) == pytest.approx(watched.summary.test_accuracies)
    assert "test/accuracy" not in read_curves(tmp_path / "without" / "log.csv")


@pytest.mark.slow
def test_every_so_many_epochs_and_the_last(given, tmp_path: Path) -> None:
    given(0.2, 0.6, 0.5)
    summary = fit(tmp_path / "fit", epochs=5, test_every=2).summary
    assert summary and summary.tested_epochs == [1, 3, 4] and summary.test_accuracies == pytest.approx([0.2, 0.6, 0.5])
    assert summary.best_on_test == (3, pytest.approx(0.6))
    row = row_of(summary)
    assert (row.last_epoch, row.best_epoch, row.best_at) == (pytest.approx(0.5), pytest.approx(0.6), 4)
    again = fit(tmp_path / "fit", epochs=5, test_every=2)
    assert again.seen == [] and again.summary == summary


@pytest.mark.slow
def test_resumed(given, tmp_path: Path) -> None:
    given(0.2)
    settings = experiment(tmp_path, training={"epochs": 3, "test_every": 1})
    with pytest.raises(Interrupted):
        student_fit(settings, tmp_path / "fit", raising(signal.SIGTERM, STEPS + 1))
    given(0.4, 0.3)
    summary = student_fit(settings, tmp_path / "fit").summary
    assert summary and summary.tested_epochs == [0, 1, 2] and summary.test_accuracies == pytest.approx([0.2, 0.4, 0.3])


def test_the_first_of_equals_is_the_best() -> None:
    summary = FitSummary(3, 3, 1.0, 1.0, {}, 0, -1, {}, [0, 1, 2], [0.4, 0.5, 0.5])
    assert summary.best_on_test == (1, 0.5)
    untested = row_of(FitSummary(3, 3, 1.0, 1.0, {}, 0, -1))
    assert (untested.last_epoch, untested.best_epoch, untested.best_at) == (None, None, None)


def row_of(summary: FitSummary) -> Row:
    """Of a student with such a fit."""
    student = SimpleNamespace(parameters=list, own_state=dict)
    return TrainedStudent("student", "", student, None, None, summary, Path()).row()  # type: ignore[arg-type]


def test_without_test_labels(tmp_path: Path) -> None:
    changes = {"data": {"source": {"labeled": False}}, "objectives": [{"type": "kd"}, {"type": "pooled"}]}
    settings = experiment(tmp_path, **changes, training={"test_every": 1})
    with pytest.raises(StageError, match=r"student: training\.test_every needs a test split with labels"):
        student_fit(settings, tmp_path / "fit")
