"""Gradient accumulation: several batches make one update, equal to one large batch, and resumed bit by bit."""

import csv
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import (
    STEPS,
    Watched,
    assert_bit_equal,
    experiment,
    straight_fit,
    student_fit,
    whole,
)

from distill.data.base import DataError
from distill.data.loader import Loader
from distill.past_views import batch_of_step
from distill.run.folder import RunError
from distill.training.checkpoints import newest_good
from distill.training.guard import NonFiniteLossError
from distill.training.module import Distillation
from distill.training.signals import Interrupted

UPDATES = 3  # of an epoch: of two, two and one batch
TERMS = [{"type": "ce"}, {"type": "kd"}]


def accumulating(output: Path, accumulate: int = 2, **changes: Any) -> Any:
    training = {"accumulate": accumulate, **changes.pop("training", {})}
    return experiment(output, training=training, **changes)


def test_two_batches_are_as_good_as_one_of_twice_the_size(tmp_path: Path) -> None:
    large = student_fit(experiment(tmp_path, data={"batch_size": 18}, objectives=TERMS), tmp_path / "large")
    small = student_fit(accumulating(tmp_path, data={"batch_size": 9}, objectives=TERMS), tmp_path / "small")
    assert small.summary and large.summary and small.summary.steps == large.summary.steps == 4
    assert len(small.seen) == 2 * len(large.seen)
    for name, weight in large.weights.items():
        torch.testing.assert_close(small.weights[name], weight, rtol=1e-3, atol=1e-5)


def test_fewer_batches_at_the_end_of_an_epoch_are_averaged_too(tmp_path: Path) -> None:
    """All of an epoch is one batch of the five that an update may have."""
    plain = experiment(tmp_path, data={"batch_size": 36}, objectives=TERMS)
    one_of_five = accumulating(tmp_path, 5, data={"batch_size": 36}, objectives=TERMS)
    expected = student_fit(plain, tmp_path / "plain").weights
    for name, weight in student_fit(one_of_five, tmp_path / "accumulated").weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-3, atol=1e-5)


def test_steps_schedules_and_averages_count_updates(tmp_path: Path) -> None:
    updates: list[int] = []
    settings = accumulating(tmp_path, training={"log_every": 1, "schedule": {"warmup": 1}})
    watched = student_fit(settings, tmp_path / "fit", lambda module: updates.append(module.average.updates))
    assert watched.summary and watched.summary.steps == 2 * UPDATES and len(watched.seen) == 2 * STEPS
    assert updates == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5]
    with (tmp_path / "fit" / "log.csv").open() as file:
        rates = {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["name"] == "lr"}
    # Read after an update, when the schedule has moved on: a third of an epoch is a third of the warm-up.
    assert list(rates) == list(range(1, 2 * UPDATES + 1))
    assert rates[1] == pytest.approx(0.01 / 3) and rates[3] == pytest.approx(0.01)
    assert rates[6] == pytest.approx(0, abs=1e-9)


def stopped_in(settings: Any, folder: Path, batch: int) -> Watched:
    """A fit that gets SIGTERM in the middle of this batch, counted from 0."""
    watched = Watched()

    def fault(module: Distillation) -> None:
        if len(watched.seen) == batch + 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        student_fit(settings, folder, fault, watched)
    return watched


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deltas", "whole"])
@pytest.mark.parametrize("stop", [0, 3, STEPS])
def test_resumed_is_bit_equal_to_never_stopped(kind: str, stop: int, tmp_path: Path) -> None:
    settings = accumulating(tmp_path, **({"student": whole(tmp_path)} if kind == "whole" else {}))
    straight = straight_fit(settings)
    first = stopped_in(settings, tmp_path / "stopped", stop)
    assert len(first.seen) == {0: 2, 3: 4, STEPS: STEPS + 2}[stop], "a signal lets the update finish"
    second = student_fit(settings, tmp_path / "stopped")
    assert first.seen + second.seen == straight.seen
    assert_bit_equal(second.weights, straight.weights)


@pytest.mark.slow
def test_gradients_are_kept_where_a_signal_ends_the_loader_between_two_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = accumulating(tmp_path)
    straight = straight_fit(settings)
    read = Loader.__iter__

    def ended(loader: Loader) -> Iterator[Any]:
        for number, batch in enumerate(read(loader)):
            if number == 3 and batch.images.shape[0] == 8 and first.seen:
                os.kill(os.getpid(), signal.SIGTERM)
                raise DataError("a worker was ended")
            yield batch

    first = Watched()
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Loader, "__iter__", ended)
        student_fit(settings, tmp_path / "stopped", into=first)
    assert len(first.seen) % 2 == 1, "in the middle of an update"
    checkpoint = newest_good(tmp_path / "stopped")
    assert checkpoint is not None and "accumulated" in torch.load(checkpoint, weights_only=True)
    second = student_fit(settings, tmp_path / "stopped")
    assert first.seen + second.seen == straight.seen
    assert_bit_equal(second.weights, straight.weights)


@pytest.mark.parametrize("bad_batch", [2, 3])
def test_a_non_finite_loss_in_any_batch_stops_before_the_update(bad_batch: int, tmp_path: Path) -> None:
    terms = [*TERMS, {"type": "toy_training:Poison", "step": bad_batch, "value": "nan"}]
    watched, before = Watched(), []

    def snapshot(module: Distillation) -> None:
        before.append({name: tensor.clone() for name, tensor in module.step.student.own_state().items()})

    with pytest.raises(NonFiniteLossError, match=r"^step 2: poison became NaN"):
        student_fit(accumulating(tmp_path, objectives=terms), tmp_path / "fit", snapshot, watched)
    assert len(before) == 4
    assert_bit_equal(watched.weights, before[2])


def test_the_batches_of_an_update_are_found_again(tmp_path: Path) -> None:
    settings = accumulating(tmp_path)
    seen = straight_fit(settings).seen
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    for number, (epoch, ids) in enumerate(seen):
        step, part = places[number % STEPS]
        actual, batch = batch_of_step(settings, step + UPDATES * (number // STEPS), part=part)
        assert (actual, batch.ids.tolist()) == (epoch, ids)
    with pytest.raises(RunError, match=r"there is no part 1: step 2 has 1 batch\(es\)"):
        batch_of_step(settings, 2, part=1)
    with pytest.raises(RunError, match=f"there is no step {2 * UPDATES}: 2 epochs have {UPDATES} steps each"):
        batch_of_step(settings, 2 * UPDATES)


@pytest.mark.slow
def test_layer_decay_in_a_run_that_accumulates(tmp_path: Path) -> None:
    """Resumed too, since the rates of the groups are in the checkpoint."""
    optimizer = {"lr": 0.01, "layer_decay": 0.5}
    settings = accumulating(tmp_path, training={"optimizer": optimizer})
    straight = straight_fit(settings)
    assert any(
        not torch.equal(straight.weights[name], weight)
        for name, weight in straight_fit(accumulating(tmp_path)).weights.items()
    )
    stopped_in(settings, tmp_path / "stopped", 2)
    assert_bit_equal(student_fit(settings, tmp_path / "stopped").weights, straight.weights)
