"""Whole runs, from a config to a report."""

import json
import os
from pathlib import Path

import pytest
from processes import StartRun
from toy_training import SIZES

pytestmark = pytest.mark.slow


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_run_writes_nothing_outside_its_folder(tmp_path: Path, start: StartRun, monkeypatch) -> None:
    """Every stage, with a teacher to fit; home, temporary and working folder are watched."""
    outside = [tmp_path / name for name in ("home", "temporary", "work")]
    for folder in outside:
        folder.mkdir()
    monkeypatch.setenv("HOME", str(outside[0]))
    monkeypatch.setenv("TMPDIR", str(outside[1]))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR", "HF_HOME", "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(outside[2])
    run = start(fresh=True, controls={}, fit_teacher={"training": {"epochs": 1, "accelerator": "cpu"}})
    before = files(tmp_path)
    assert run.wait(250) == 0, run.output.read_text()
    assert run.status == "finished"
    new = files(tmp_path) - before
    strays = {name for name in new if not name.startswith(("toy/", "teachers/"))} - {run.output.name}
    assert not {name for name in strays if not name.startswith("home/.cache/matplotlib/")}, "but its list of fonts"
    assert {"toy/report.html", "toy/config.yaml", "toy/run.json", "toy/results.json", "toy/preview/views.png"} <= new
    assert not [name for name in new if name.endswith(".tmp")]
    rows = {row["name"]: row for row in json.loads((run.folder / "results.json").read_text())["summary"]["rows"]}
    assert list(rows) == ["linear probe", "labels only", "student", "teacher"]
    assert all(os.path.exists(run.folder / name / "result.ckpt") for name in ("student", "labels-only"))


def test_a_run_without_labels(tmp_path: Path, start: StartRun) -> None:
    run = start(
        fault="-1 0 0",
        controls={},
        data={"source": {"labeled": False}},
        objectives=[{"type": "pooled"}, {"type": "kd"}],
        training={"early_stop": {"patience": 1}, "keep": "best"},
    )
    assert run.wait() == 0, run.output.read_text()
    summary = json.loads((run.folder / "results.json").read_text())["summary"]
    assert [row["name"] for row in summary["rows"]] == ["student", "teacher"]
    counts = "{train} training images, none of them labeled, {val} for validation, {test} for test".format(**SIZES)
    assert counts in run.output.read_text()
    student = summary["rows"][0]
    assert student["accuracy"] is None and (student["agreement"] * SIZES["test"]) % 1 == pytest.approx(0, abs=1e-5)
    assert any("no linear probe" in warning for warning in summary["warnings"])


def test_a_run_without_a_teacher(tmp_path: Path, start: StartRun) -> None:
    watched = {"data": {"on_device": True}, "training": {"test_every": 1}}
    run = start(fault="-1 0 0", controls={}, teacher=None, objectives=[{"type": "ce"}], **watched)
    assert run.wait() == 0, run.output.read_text()
    summary = json.loads((run.folder / "results.json").read_text())["summary"]
    assert [row["name"] for row in summary["rows"]] == ["linear probe", "student"]
    probe, student = summary["rows"]
    assert probe["best_epoch"] is None
    assert student["last_epoch"] == pytest.approx(student["accuracy"]), "what is kept is the last epoch"
    assert student["best_epoch"] >= student["last_epoch"] and 1 <= student["best_at"] <= 2
    assert "Last and best epoch" in (run.folder / "report.html").read_text()


def test_a_run_that_fails_says_so_and_can_be_resumed(tmp_path: Path, start: StartRun) -> None:
    poison = [{"type": "ce"}, {"type": "kd"}, {"type": "toy_training:Poison", "step": 7, "value": "nan"}]
    run = start(fault="-1 0 0", objectives=poison)
    assert run.wait() == 1 and run.status == "failed"
    output = run.output.read_text()
    assert "error: step 8: poison became NaN" in output and "Traceback" not in output
    run = start("--resume", fault="-1 0 0", objectives=poison)  # it counts its steps anew, and none is the eighth
    assert run.wait() == 0 and run.status == "finished"


def test_a_second_start_makes_a_second_folder(tmp_path: Path, start: StartRun) -> None:
    first = start(fault="0 0 15")
    assert first.wait() == 143
    assert start(fault="0 0 15").wait() == 143
    assert {path.name for path in tmp_path.iterdir() if (path / "run.json").exists()} == {"toy", "toy@2"}
