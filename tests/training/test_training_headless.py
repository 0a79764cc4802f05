"""A whole run on images without labels and a teacher without a classifier: the student has none either."""

import json
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from toy_training import experiment, run

from distill.export.targets.timm_folder import write_timm_folder


@pytest.mark.slow
@pytest.mark.usefixtures("verification_forks")
def test_features_of_unlabeled_images_are_enough(tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_timm_folder(tmp_path / "teacher", timm.create_model("test_resnet", num_classes=0), origin="random")
    settings = experiment(
        tmp_path,
        data={"source": {"labeled": False}},
        teacher={"networks": [{"model": f"local-dir:{tmp_path / 'teacher'}", "size": 32}]},
        objectives=[{"type": "pooled"}],
        controls={"linear_probe": False, "labels_only": False},
        training={"epochs": 1, "schedule": {"warmup": 0}},
    )
    folder = run(settings, console=Console(quiet=True))
    summary = json.loads((folder / "results.json").read_text())["summary"]
    assert all(check["passed"] for check in summary["verification"])
    row = next(row for row in summary["rows"] if row["name"] == "student")
    assert row.get("accuracy") is None and row.get("agreement") is None, "there is nothing to score"
    merged = timm.create_model(f"local-dir:{folder / 'export' / 'merged'}", pretrained=True).eval()
    assert merged.num_classes == 0 and merged(torch.zeros(1, 3, 32, 32)).shape == (1, merged.num_features)
