"""Nothing is chosen on images that are evaluated: val is read only beside a test split."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distill.stages.stream_controls as controls
from distill.continual.heads.ridge import Ridge
from distill.continual.task import Task
from distill.data.base import Split
from distill.run.stage import StageError
from distill.stages.extract_features import TaskFeatures
from distill.stages.fit_heads import FitHeads
from distill.training.evaluate import Predictions

HEADS = (Ridge.Settings(), Ridge.Settings(choose="held_out", name="chosen"))
SPLITS: dict[tuple[Split, ...], bool] = {("train", "val", "test"): True, ("train", "val"): False}
"""Splits of the data → whether val can be chosen by."""


def features(splits: tuple[Split, ...]) -> TaskFeatures:
    labels = torch.arange(6) % 2
    predictions = Predictions(torch.eye(2)[labels] + torch.arange(6)[:, None], labels, torch.arange(6))
    return TaskFeatures(Task("task-1", ("a", "b"), {}), dict.fromkeys(splits, predictions), 0.0)


@pytest.mark.parametrize("splits", SPLITS)
def test_a_head_chooses_by_val_only_beside_a_test_split(splits: tuple[Split, ...], tmp_path: Path) -> None:
    output = features(splits)
    context = SimpleNamespace(get=lambda _: output, data=SimpleNamespace(has_split=splits.__contains__))
    stage = FitHeads("heads", HEADS[:1], (None,))  # type: ignore[arg-type]
    fitted = stage.run(context, tmp_path)  # type: ignore[arg-type]
    assert fitted.held_out.of(Ridge(HEADS[0])).images == 6 * SPLITS[splits]
    stage.check(context)  # type: ignore[arg-type]
    choosing = FitHeads("heads", HEADS, (None,))  # type: ignore[arg-type]
    if SPLITS[splits]:
        choosing.check(context)  # type: ignore[arg-type]
        assert "chosen" in choosing.run(context, tmp_path).scores.scores  # type: ignore[arg-type]
    else:
        with pytest.raises(StageError, match=r"heads.1: chosen chooses by val, and there is none beside the split"):
            choosing.check(context)  # type: ignore[arg-type]


@pytest.mark.parametrize("splits", SPLITS)
def test_the_penalty_of_a_control_is_not_chosen_on_what_is_evaluated(
    splits: tuple[Split, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen_by: list[torch.Tensor] = []

    def fit_probe(train: Predictions, held_out: Predictions, classes: int) -> SimpleNamespace:
        chosen_by.append(held_out.ids)
        return SimpleNamespace(weight=torch.zeros(classes, 2), bias=torch.zeros(classes))

    monkeypatch.setattr(controls, "fit_probe", fit_probe)
    output = features(splits)
    val = output.splits["val"]
    marked = {**output.splits, "val": Predictions(val.logits, val.labels, val.ids + 10)}
    controls._fit([TaskFeatures(output.task, marked, 0.0)])
    assert bool((chosen_by[0] >= 10).all()) == SPLITS[splits]
