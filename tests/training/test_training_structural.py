"""Whole runs with structural deltas: prepared, trained, logged, exported, verified without a merged folder."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_training import experiment, network, run

from distill.commands.exported import evaluate_run, verify_run
from distill.commands.runs import export_run
from distill.export.checksummed import ExportError
from distill.export.delta.io import read_delta
from distill.report.items import MEASURES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("verification_forks", "blank_figures", "blank_previews")]

QUIET = {"controls": {"linear_probe": False, "labels_only": False}, "training": {"epochs": 1, "ema": None}}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "adapter": ("test_efficientnet", {"type": "adapter", "hidden": 4}),
    "deep_delta": ("test_efficientnet", {"type": "deep_delta", "values": 2}),
    "ladder": ("test_resnet", {"type": "ladder", "samples": 16, "cache_mb": 8}),
}


def console() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run(name: str, tmp_path: Path) -> None:
    model, delta = RUNS[name]
    student = {"network": network(tmp_path, model), "deltas": [delta]}
    folder = run(experiment(tmp_path, student=student, **QUIET), console=console())
    assert not (folder / "export" / "merged").exists()
    summary = json.loads((folder / "results.json").read_text())["summary"]
    assert [check["name"] for check in summary["verification"]] == ["hashes", "delta file = live model"]
    assert all(check["passed"] for check in summary["verification"])
    assert f"no merged model: {name} cannot be merged; see export/delta" in summary["warnings"]
    manifest, tensors = read_delta(folder / "export" / "delta")
    assert [group.settings["type"] for group in manifest.deltas] == [name]
    with (folder / "student" / "log.csv").open() as file:
        logged = {row["name"] for row in csv.DictReader(file)}
    expected = {"deep_delta": {"beta", "error"}, "ladder": {"gate", "cached"}, "adapter": set()}[name]
    assert {key for key in logged if key.startswith("delta/")} == {f"delta/{name}/{key}" for key in expected}
    if name == "ladder":
        assert (folder / "student" / "prepared.ckpt").is_file()

    shown = Console(file=io.StringIO(), record=True, width=80)
    predictions = evaluate_run(folder, "test", shown)
    student_row = next(row for row in summary["rows"] if row["name"] == "student")
    assert predictions.accuracy() == pytest.approx(student_row["accuracy"])
    text = shown.export_text().replace("\u00a0", " ")
    names = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")
    assert tuple(student_row["measures"]) == names, "top-5 accuracy needs more than five classes"
    for name in names:
        estimate = student_row["measures"][name]
        interval = f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"
        assert [line for line in text.splitlines() if MEASURES[name] in line and interval in line], text
    verify_run(folder, console())
    export_run(folder, folder / "again", console())
    again = read_delta(folder / "again" / "delta")[1]
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensors[key]) for key in tensors)
    path = folder / "export" / "delta" / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(ExportError, match=r"delta\.safetensors"):
        verify_run(folder, console())
