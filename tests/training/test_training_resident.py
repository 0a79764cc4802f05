"""Training from images that lie on the device: the very run that the loader's workers would have fed."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_training import (
    SIZES,
    STEPS,
    BlobSamples,
    Made,
    all_views,
    assert_bit_equal,
    experiment,
    fit_teachers,
    noting_views,
    raising,
)
from toy_training import student_fit as fit

from distill.config import ConfigError
from distill.past_views import augment_of, batch_of_step, data_of
from distill.run.context import RunContext
from distill.training.signals import Interrupted, StopSignal

FITTED = {
    "data": {"labels_per_class": 3},
    "teacher": {"cache": {"logits": "full", "pooled": True}},
    "fit_teacher": {"training": {"epochs": 1, "accelerator": "cpu"}},
    "objectives": [{"type": "ce"}, {"type": "kd"}],
}


def held(changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, "data": {**changes.get("data", {}), "on_device": True}}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids in the order of their decoding."""
    plain, ids = BlobSamples.__getitem__, []

    def noted(samples: BlobSamples, index: int) -> Any:
        ids.append(samples.ids[index])
        return plain(samples, index)

    monkeypatch.setattr(BlobSamples, "__getitem__", noted)
    return ids


def losses(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "log.csv").open(newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file) if "loss" in row["name"] or "val" in row["name"]]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, FITTED], ids=["plain", "teacher fitted, its words cached, few labels"])
def test_the_same_training(changes: dict[str, Any], tmp_path: Path, decoded: list[str]) -> None:
    plain = fit(experiment(tmp_path / "plain", **changes), tmp_path / "plain" / "fit")
    decoded.clear()
    resident = fit(experiment(tmp_path / "held", **held(changes)), tmp_path / "held" / "fit")
    assert resident.seen == plain.seen and len(resident.seen) == (3 if changes else 2) * STEPS, (
        "the teacher's fit is one epoch"
    )
    assert losses(tmp_path / "held" / "fit") == losses(tmp_path / "plain" / "fit") != []
    assert_bit_equal(resident.weights, plain.weights)
    once = [id for id in decoded if id.startswith("val")]
    assert len(once) == SIZES["val"], "decoded once, for the teacher's fit, its agreement and both validations"


@pytest.mark.slow
def test_resumed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    settings = experiment(tmp_path, **held({}))
    whole = fit(settings, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(settings, tmp_path / "stopped", raising(signal.SIGTERM, STEPS + 1))
    again = fit(settings, tmp_path / "stopped")
    assert again.seen == whole.seen[STEPS + 2 :]
    assert_bit_equal(again.weights, whole.weights)


def test_views_of_a_step_are_made_again(tmp_path: Path) -> None:
    settings, made = experiment(tmp_path, **held({})), list[Made]()
    with noting_views(made):
        fit(settings, tmp_path / "fit")
    epoch, batch = batch_of_step(settings, STEPS + 1)
    seen = next(entry for entry in made if entry[0] == 1 and entry[1] == batch.ids.tolist())
    again = augment_of(settings)(data_of(settings).batch_of_ids(batch.ids.tolist(), epoch).images, batch.ids, epoch)
    assert all(torch.equal(*pair) for pair in zip(all_views(seen[2]), all_views(again), strict=True))


def test_it_is_told_and_shared_with_the_fit_of_the_teacher(tmp_path: Path, decoded: list[str]) -> None:
    settings = experiment(tmp_path, **held(FITTED))
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "said").open("w"))
    with StopSignal() as stop:
        context = RunContext.of(settings, stop, console)
        fit_teachers(settings, context)
        list(context.data.train_loader())
    console.file.close()
    assert "36 images of the train split at 32 × 32 pixels are on cpu: 0.1 MB" in (tmp_path / "said").read_text()
    assert len([id for id in decoded if id.startswith("train")]) == SIZES["train"]
    assert context.data.device == torch.device("cpu")


@pytest.mark.parametrize("key", ["augment", "fit_teacher.augment"])
def test_there_are_no_workers_to_make_views(key: str, tmp_path: Path) -> None:
    views = {"policy": "identical", "student": ["RandomHorizontalFlip"], "placement": "loader"}
    changes = {"augment": views} if key == "augment" else FITTED | {"fit_teacher": {"augment": views}}
    experiment(tmp_path, **changes)
    with pytest.raises(ConfigError, match=rf"{key}\.placement: with data\.on_device, the loader has no workers"):
        experiment(tmp_path, **held(changes))
