"""Where views are made: chosen by the settings or measured once, kept for the resumed fit, and the same views."""

import json
import signal
from pathlib import Path

import pytest
import torch
from toy_training import STEPS, assert_bit_equal, experiment, raising, student_fit

from augment.dual import AugmentSettings, DualAugment
from augment.placement import LoaderViews
from augment.views import InputSpec
from distill.data.base import DataError
from distill.run.context import make_data
from distill.training import placement
from distill.training.placement import PLACEMENT, choose_placement, read_placement
from distill.training.signals import Interrupted

HERE = __name__
CPU = torch.device("cpu")


class Broken(torch.nn.Module):
    def forward(self, images):
        raise KeyError("gain")


def settings(folder: Path, placement: str, workers: int = 0, **augment):
    changes = {"augment": {"placement": placement, **augment}, "data": {"workers": workers}}
    return experiment(folder, **changes)


def dual(chosen) -> DualAugment:
    return DualAugment(chosen.augment, [], InputSpec((16, 16)), chosen.seed)


@pytest.mark.slow
def test_the_workers_train_what_the_device_trains(tmp_path: Path) -> None:
    there = student_fit(settings(tmp_path, "loader", workers=1), tmp_path / "loader")
    here = student_fit(settings(tmp_path, "device"), tmp_path / "device")
    assert there.seen == here.seen
    for name, weight in here.weights.items():
        torch.testing.assert_close(there.weights[name], weight, rtol=0.05, atol=0.02)
    alone = student_fit(settings(tmp_path, "loader"), tmp_path / "no workers")
    assert_bit_equal(alone.weights, there.weights)


@pytest.mark.slow
def test_resumed_is_bit_equal_where_the_workers_make_the_views(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "loader", workers=1)
    straight = student_fit(chosen, tmp_path / "straight")
    with pytest.raises(Interrupted):
        student_fit(chosen, tmp_path / "stopped", raising(signal.SIGTERM, STEPS + 1))
    assert_bit_equal(student_fit(chosen, tmp_path / "stopped").weights, straight.weights)


@pytest.mark.parametrize(
    ("device", "loader", "expected"), [(2.0, 1.0, "loader"), (1.05, 1.0, "device"), (1, 2, "device")]
)
def test_auto_is_measured_once_and_kept(device, loader, expected, tmp_path: Path, monkeypatch, capsys) -> None:
    from rich.console import Console

    seconds = {"device": device, "loader": loader}
    monkeypatch.setattr(placement, "seconds_per_batch", lambda dual, loader, side, device: seconds[side])
    chosen = settings(tmp_path, "auto", workers=2)
    batches, augment = make_data(chosen).train_loader(), dual(chosen)
    assert choose_placement(augment, batches, tmp_path, CPU, Console(width=200)) == expected
    assert f"augmentation runs on the {expected}'s side" in capsys.readouterr().out
    assert isinstance(batches.reader.views, LoaderViews) == (expected == "loader")
    kept = json.loads((tmp_path / PLACEMENT).read_text())
    assert (
        kept == {"placement": expected, "seconds_per_batch": seconds} and read_placement(augment, tmp_path) == expected
    )
    monkeypatch.setattr(placement, "seconds_per_batch", lambda *unused: pytest.fail("measured again"))
    again = make_data(chosen).train_loader()
    assert choose_placement(augment, again, tmp_path, CPU, None) == expected
    assert isinstance(again.reader.views, LoaderViews) == (expected == "loader")


def test_without_workers_auto_is_the_device(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "auto")
    assert choose_placement(dual(chosen), make_data(chosen).train_loader(), tmp_path, CPU, None) == "device"


@pytest.mark.parametrize("side", ["device", "loader"])
def test_the_measurement_leaves_the_loader_as_it_was(side, tmp_path: Path) -> None:
    chosen = settings(tmp_path, "auto", workers=1)
    batches = make_data(chosen).train_loader()
    assert 0 < placement.seconds_per_batch(dual(chosen), batches, side, CPU) < 5
    assert batches.reader.views is None and batches.state_dict()["batches"] == 0
    plain = make_data(chosen).train_loader()
    assert [batch.ids.tolist() for batch in batches] == [batch.ids.tolist() for batch in plain]
    batches.close(), plain.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_operation_that_fails_in_a_worker_is_named(workers, tmp_path: Path) -> None:
    chosen = settings(tmp_path, "loader", workers=workers, student=[f"{HERE}:Broken"])
    batches = make_data(chosen).train_loader()
    choose_placement(dual(chosen), batches, tmp_path, CPU, None)
    with pytest.raises(DataError, match=r"making the views of a batch in the loader: (.|\n)*KeyError: 'gain'"):
        next(iter(batches))


def test_looks_come_instead_of_the_canvas(tmp_path: Path) -> None:
    chosen = settings(tmp_path, "loader")
    batches = make_data(chosen).train_loader()
    choose_placement(dual(chosen), batches, tmp_path, CPU, None)
    batch = next(iter(batches))
    assert batch.images.shape == (8, 3, 0, 0) and batch.view_pixels is not None
    assert all(pixels.dtype == torch.uint8 and pixels.shape == (8, 3, 16, 16) for pixels in batch.view_pixels.values())
    assert AugmentSettings().placement == "device"
