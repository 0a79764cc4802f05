"""Replay gives back the very views of a past step, from the run folder alone."""

import signal
from pathlib import Path

import pytest
import torch
from toy_training import SIZES, STEPS, Made, Watched, all_views, experiment, noting_views, raising, student_fit

import distill
from augment.views import Views
from distill.data.base import DataError
from distill.run.folder import RunError, close_run, open_run
from distill.training.signals import Interrupted

POLICIES = {
    "shared geometry, cutmix": {
        "policy": "shared_geometry",
        "student": [{"type": "RandomResizedCrop"}, {"type": "ColorJitter", "brightness": 0.4, "hue": 0.1}],
        "mix": {"cutmix": 1.0},
    },
    "multicrop": {"policy": "multicrop", "local": [{"crops": 2}]},
    "made by the loader's worker": {"placement": "loader", "student": [{"type": "ColorJitter", "hue": 0.1}]},
}


def run_of(output: Path, **changes) -> tuple[Path, object]:
    """A run folder that was started, and its settings."""
    settings = experiment(output, **changes)
    try:
        return open_run(settings.output, settings.model_dump(mode="json"), resume=False).path, settings
    finally:
        close_run()


def assert_same(actual: Views, expected: Views) -> None:
    assert len(all_views(actual)) == len(all_views(expected)) > 1 and actual.pairs == expected.pairs
    assert all(map(torch.equal, all_views(actual), all_views(expected)))
    assert (actual.mix is None) == (expected.mix is None)
    if actual.mix is not None and expected.mix is not None:
        assert torch.equal(actual.mix.partner, expected.mix.partner) and actual.mix.student == expected.mix.student


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_every_step_of_a_run_stopped_and_resumed(name: str, tmp_path: Path) -> None:
    data = {"loader_ops": [{"type": "HueSaturationValue", "p": 0.5}], "workers": 1}
    run, settings = run_of(tmp_path, augment=POLICIES[name], data=data, objectives=[{"type": "kd"}])
    steps: list[Made] = []
    with noting_views(steps):
        with pytest.raises(Interrupted):
            student_fit(settings, run / "student", raising(signal.SIGTERM, STEPS + 1), Watched())
        assert len(steps) == STEPS + 2
        student_fit(settings, run / "student")
    assert len(steps) == 2 * STEPS
    for step in (0, STEPS + 1, STEPS + 2):  # the first; the last before the stop; the first after it
        epoch, ids, views = steps[step]
        assert distill.ids_of_step(run, step) == (epoch, ids)
        assert_same(distill.replay(run, ids, epoch), views)
    assert not torch.equal(distill.replay(run, ids, epoch + 1).student[0], views.student[0])


def test_some_samples_by_name_in_any_order(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    epoch, keys = distill.ids_of_step(run, 3)
    whole = distill.replay(run, keys, epoch)
    some = distill.replay(str(run), [keys[5], keys[2]], epoch)
    for actual, expected in zip(all_views(some), all_views(whole)):
        torch.testing.assert_close(actual, expected[[5, 2]], rtol=0, atol=1e-5)
    named = distill.replay(run, ["train/007", "train/000"], 1)
    assert named.student[0].shape[0] == 2
    assert not torch.equal(named.student[0][0], named.student[0][1])


def test_ranks_share_a_step(tmp_path: Path) -> None:
    alone, _ = run_of(tmp_path)
    run, _ = run_of(tmp_path, training={"devices": 2})
    for step in (0, STEPS + 1):
        parts = [distill.ids_of_step(run, step, rank) for rank in (0, 1)]
        assert (parts[0][0], parts[0][1] + parts[1][1]) == distill.ids_of_step(alone, step)


def test_what_cannot_be_replayed_is_named(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path)
    with pytest.raises(DataError, match="no training sample has the id 'train/999'; the first is 'train/000'"):
        distill.replay(run, ["train/001", "train/999"], 0)
    with pytest.raises(DataError, match="no training sample has the id 12"):
        distill.replay(run, [12], 0)
    with pytest.raises(RunError, match=f"there is no step {2 * STEPS}: 2 epochs have {STEPS} steps each"):
        distill.ids_of_step(run, 2 * STEPS)
    with pytest.raises(RunError, match=r"there is no rank 1: training\.devices is 1"):
        distill.ids_of_step(run, 0, rank=1)
    with pytest.raises(RunError, match="is no run folder"):
        distill.replay(tmp_path / "nowhere", ["a"], 0)
    with pytest.raises(AttributeError, match="no attribute 'reply'"):
        distill.reply  # noqa: B018


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
def test_any_number_of_workers_gives_the_same_views(tmp_path: Path) -> None:
    """Two epochs read by none and by four workers, whose order of finishing is their own."""
    from distill.past_views import augment_of, data_of

    settings = experiment(tmp_path, data={"loader_ops": [{"type": "HueSaturationValue", "p": 0.5}], "batch_size": 4})
    augment = augment_of(settings)
    epochs = []
    for workers in (0, 4):
        plain = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": workers})})
        loader = data_of(plain).train_loader()
        epochs.append(
            [(at, batch.ids.tolist(), augment(batch.images, batch.ids, at)) for at in (0, 1) for batch in loader]
        )
        loader.close()
    assert len(epochs[0]) == len(epochs[1]) == 2 * (SIZES["train"] // 4)
    for (epoch, ids, alone), (other_epoch, other_ids, by_workers) in zip(*epochs):
        assert (epoch, ids) == (other_epoch, other_ids)
        assert_same(alone, by_workers)
