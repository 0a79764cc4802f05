"""Interrupted in the middle of an epoch and resumed: the same samples, the same weights, bit by bit."""

import signal
from pathlib import Path

import pytest
from toy_training import (
    STEPS,
    Watched,
    assert_bit_equal,
    experiment,
    raising,
    straight_fit,
    student_fit,
    student_spec,
    whole,
)

from distill.run.context import RunContext
from distill.training.callbacks import Checkpointing
from distill.training.checkpoints import checkpoint_path, newest_good, steps_of
from distill.training.signals import Interrupted, StopSignal

# Objectives with a memory, with draws of their own, or with a second player.
BANKS = [
    {"type": "crd", "negatives": 20, "dim": 4},
    {"type": "rrd", "queue": 20, "dim": 4, "schedule": {"warmup": 1}},
    {"type": "vib", "dim": 4},
    {"type": "adversarial", "hidden": 4},
]


def interrupted(settings, folder: Path, step: int) -> Watched:
    watched = Watched()
    with pytest.raises(Interrupted):
        student_fit(settings, folder, raising(signal.SIGTERM, step), watched)
    return watched


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("deltas", 0),
        ("deltas", 2),
        ("banks", 3),
        ("deltas", STEPS - 1),
        ("whole", 2),
        ("whole", STEPS),
        ("whole", 2 * STEPS - 1),
    ],
)
def test_resumed_is_bit_equal_to_never_stopped(kind: str, step: int, tmp_path: Path) -> None:
    changes = {
        "deltas": {},
        "whole": {"student": whole(tmp_path)},
        "banks": {"objectives": [{"type": "ce"}, *BANKS]},
    }
    settings = experiment(tmp_path, **changes[kind])
    straight = straight_fit(settings)
    first = interrupted(settings, tmp_path / "stopped", step)
    assert len(first.seen) == step + 1, "the signal lets the step finish, and no other begins"
    second = student_fit(settings, tmp_path / "stopped")
    assert first.seen + second.seen == straight.seen
    for epoch in range(2):
        ids = straight.ids(epoch)
        assert len(ids) == len(set(ids)) == 8 * STEPS
    assert_bit_equal(second.weights, straight.weights)
    assert second.summary and straight.summary
    assert second.summary.scores == straight.summary.scores and second.summary.best_epoch == straight.summary.best_epoch


def test_dropout_and_drop_path_are_on_where_bit_equality_is_tested(tmp_path: Path) -> None:
    settings = experiment(tmp_path, student=whole(tmp_path))
    with StopSignal() as stop:
        model = student_spec(settings, RunContext.of(settings, stop)).build().model
    assert model.drop_rate == 0.2
    assert any(getattr(module, "drop_prob", 0) > 0 for module in model.modules())


@pytest.mark.slow
def test_stopped_three_times(tmp_path: Path) -> None:
    settings = experiment(tmp_path, student=whole(tmp_path))
    straight = straight_fit(settings)
    seen = [at for step in (1, 3, STEPS + 1) for at in interrupted(settings, tmp_path / "stopped", step).seen]
    last = student_fit(settings, tmp_path / "stopped")
    assert seen + last.seen == straight.seen
    assert_bit_equal(last.weights, straight.weights)


def test_resume_from_the_checkpoint_of_an_epochs_end(tmp_path: Path) -> None:
    """What a kill in the next epoch leaves behind."""
    settings = experiment(tmp_path, student=whole(tmp_path))
    straight = straight_fit(settings)
    interrupted(settings, tmp_path / "stopped", STEPS + 2)
    newest, end_of_epoch = steps_of(tmp_path / "stopped")
    assert end_of_epoch == checkpoint_path(tmp_path / "stopped", STEPS)
    newest.unlink()
    resumed = student_fit(settings, tmp_path / "stopped")
    assert resumed.seen == straight.seen[STEPS:]
    assert_bit_equal(resumed.weights, straight.weights)


def test_resume_after_the_last_epoch_before_the_result_was_written(tmp_path: Path) -> None:
    settings = experiment(tmp_path, training={"keep": "best"})
    folder = tmp_path / "fit"
    straight = student_fit(settings, folder)
    for file in ("fit.json", "result.ckpt"):
        (folder / file).unlink()
    again = student_fit(settings, folder)
    assert again.seen == [] and again.summary == straight.summary
    assert_bit_equal(again.weights, straight.weights)


def test_a_finished_fit_is_loaded(tmp_path: Path) -> None:
    straight = student_fit(experiment(tmp_path), tmp_path / "fit")
    again = student_fit(experiment(tmp_path), tmp_path / "fit")
    assert again.seen == [] and again.summary == straight.summary
    assert_bit_equal(again.weights, straight.weights)


def test_saves_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most ``checkpoint_minutes`` of work are lost to a kill -9, also where an epoch takes longer."""
    saved = []
    save = Checkpointing.save
    monkeypatch.setattr(Checkpointing, "save", lambda *a: (saved.append(a[1].global_step), save(*a)))
    student_fit(experiment(tmp_path, training={"checkpoint_minutes": 1e-9}), tmp_path / "fit")
    assert saved == list(range(1, 2 * STEPS + 1))
    assert len(steps_of(tmp_path / "fit")) == 2, "the newest and the one before it are kept"
    assert newest_good(tmp_path / "fit") == checkpoint_path(tmp_path / "fit", 2 * STEPS)
