"""What validation decides: scores, the best weights, when to stop."""

from pathlib import Path

import pytest
import torch
from test_training_resume import interrupted
from toy_training import STEPS, assert_bit_equal, experiment, network, student_fit

from distill.run.stage import StageError
from distill.training.callbacks import Validation
from distill.training.checkpoints import VerifiedCheckpointIO

UNLABELED = {
    "data": {"source": {"labeled": False}},
    "objectives": [{"type": "kd"}, {"type": "pooled"}],
}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch):
    """Replaces the score of each epoch by a given one."""

    def with_scores(*scores: float) -> list[int]:
        validated: list[int] = []

        def score(self: Validation, predictions) -> dict[str, float]:
            validated.append(len(validated))
            return {"val/accuracy": scores[validated[-1]]}

        monkeypatch.setattr(Validation, "_score", score)
        return validated

    return with_scores


@pytest.mark.slow
def test_early_stop(scored, tmp_path: Path) -> None:
    scored(0.1, 0.3, 0.2, 0.3, 0.9)
    fit = student_fit(experiment(tmp_path, training={"epochs": 5, "early_stop": {"patience": 2}}), tmp_path / "fit")
    assert fit.summary and (fit.summary.epochs, fit.summary.best_epoch) == (4, 1), "an equal score is no better one"
    for file in ("fit.json", "result.ckpt"):
        (tmp_path / "fit" / file).unlink()
    settings = experiment(tmp_path, training={"epochs": 5, "early_stop": {"patience": 2}})
    again = student_fit(settings, tmp_path / "fit")
    assert again.seen == [] and again.summary == fit.summary, "stopped early is finished, also for who resumes"
    assert_bit_equal(again.weights, fit.weights)


def test_early_stop_counts_validations(scored, tmp_path: Path) -> None:
    validated = scored(0.3, 0.2, 0.1)
    training = {"epochs": 6, "validate_every": 2, "early_stop": {"patience": 1}}
    fit = student_fit(experiment(tmp_path, training=training), tmp_path / "fit")
    assert validated == [0, 1] and fit.summary and (fit.summary.epochs, fit.summary.best_epoch) == (4, 1)


def test_the_last_epoch_is_always_validated(scored, tmp_path: Path) -> None:
    validated = scored(0.3, 0.2)
    student_fit(experiment(tmp_path, training={"epochs": 3, "validate_every": 2}), tmp_path / "fit")
    assert validated == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_keep_best(ema: float | None, scored, tmp_path: Path) -> None:
    """The result is the best epoch's weights (their average, with EMA), also if the run stopped after it."""
    training = {"epochs": 3, "keep": "best", "ema": ema}
    scored(0.1, 0.3, 0.2, 0.2)
    whole = student_fit(experiment(tmp_path, training=training), tmp_path / "fit")
    best = VerifiedCheckpointIO().load_checkpoint(tmp_path / "fit" / "best.ckpt")["student"]
    assert_bit_equal(whole.weights, best)
    assert whole.summary and whole.summary.best_epoch == 1
    checkpoint = VerifiedCheckpointIO().load_checkpoint(tmp_path / "fit" / f"step-{2 * STEPS:08d}.ckpt")
    name, weight = next((name, weight) for name, weight in best.items() if name.endswith(".B"))
    assert torch.equal(weight, checkpoint["average"][name] if ema else checkpoint["state_dict"][f"step.student.{name}"])
    scored(0.1, 0.3, 0.2)
    interrupted(experiment(tmp_path, training=training), tmp_path / "stopped", 2 * STEPS + 1)
    scored(0.2)
    resumed = student_fit(experiment(tmp_path, training=training), tmp_path / "stopped")
    assert_bit_equal(resumed.weights, whole.weights)


def test_without_labels_the_score_is_agreement_with_the_teacher(tmp_path: Path) -> None:
    fit = student_fit(experiment(tmp_path, **UNLABELED), tmp_path / "fit")
    assert fit.summary and list(fit.summary.scores) == ["val/agreement"] and fit.summary.best_epoch >= 0


@pytest.mark.parametrize("needs_score", [{"early_stop": {}}, {"keep": "best"}])
def test_a_best_epoch_needs_a_score(needs_score: dict, tmp_path: Path) -> None:
    settings = experiment(
        tmp_path,
        teacher={"networks": [network(tmp_path, "test_resnet"), {"model": "test_resnet", "pretrained": False}]},
        data={"source": {"labeled": False}},
        objectives=[{"type": "pooled"}],
        training=needs_score,
    )
    with pytest.raises(StageError, match=r"student: training\.\w+.* needs a score"):
        student_fit(settings, tmp_path / "fit")
