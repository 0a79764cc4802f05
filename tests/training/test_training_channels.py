"""Whole runs on images of other than three channels, from the views to the verification."""

import json
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from toy_training import experiment, run

import distill
from distill.commands.exported import evaluate_run, verify_run
from distill.config import ConfigError

QUIET = {"controls": {"labels_only": False}, "training": {"epochs": 1, "ema": None}}
GRAY = {"policy": "independent", "student": ["RandomHorizontalFlip", {"type": "ColorJitter", "brightness": 0.2}]}


@pytest.mark.slow
@pytest.mark.usefixtures("verification_forks", "blank_figures")
@pytest.mark.parametrize("channels", [1, 4])
def test_a_whole_run(channels: int, tmp_path: Path) -> None:
    settings = experiment(tmp_path, data={"channels": channels}, augment=GRAY, **QUIET)
    assert settings.student.network.in_chans == settings.teacher.networks[0].in_chans == channels
    folder = run(settings, console=Console(quiet=True))
    summary = json.loads((folder / "results.json").read_text())["summary"]
    assert all(check["passed"] for check in summary["verification"])
    accuracy = next(row["accuracy"] for row in summary["rows"] if row["name"] == "student")
    assert evaluate_run(folder, "test", Console(quiet=True)).accuracy() == pytest.approx(accuracy)
    verify_run(folder, Console(quiet=True))

    merged = timm.create_model(f"local-dir:{folder / 'export' / 'merged'}", pretrained=True).eval()
    config = timm.data.resolve_data_config(model=merged)
    assert config["input_size"] == (channels, 32, 32) and len(config["mean"]) == len(config["std"]) == channels
    x = torch.randn(2, channels, 32, 32)
    loaded = distill.load_delta(folder / "export" / "delta", settings.student.network.model)
    torch.testing.assert_close(loaded(x), merged(x), rtol=1e-4, atol=1e-4)


def test_every_network_takes_the_channels_of_the_images(tmp_path: Path) -> None:
    settings = experiment(tmp_path, data={"channels": 2}, augment=GRAY)
    again = type(settings).model_validate(settings.model_dump(mode="json"))
    assert again == settings and again.student.network.in_chans == 2
    with pytest.raises(ConfigError, match=r"student\.network\.in_chans: the network takes 4, and data\.channels is 3"):
        experiment(tmp_path, student={"network": {"in_chans": 4}})
    with pytest.raises(ConfigError, match=r"data\.channels: must be at most 12, is 13"):
        experiment(tmp_path, data={"channels": 13})
