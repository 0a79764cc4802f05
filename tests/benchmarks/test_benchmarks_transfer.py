"""The parts of ``benchmarks/transfer.py`` on toy results; the configs that they run are read."""

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import transfer  # noqa: E402
import transfer_few_shot  # noqa: E402
import transfer_fresh  # noqa: E402
import transfer_lab  # noqa: E402
import transfer_offsite  # noqa: E402
import transfer_target  # noqa: E402
from accuracy import Notebook  # noqa: E402
from lab import Lab, NotMeasuredError, section  # noqa: E402
from transfer_lab import figure  # noqa: E402

from distill.config import validate_tree  # noqa: E402
from distill.training.signals import StopSignal  # noqa: E402
from distill.yaml_tree import load_tree, merge_trees  # noqa: E402


def lab(out: Path, *arguments: str) -> Lab:
    given = transfer.parser().parse_args(["--out", str(out), "--data", str(out / "data"), *arguments])
    with StopSignal() as stop:
        return Lab(given, Notebook(out, {}), stop, Console(quiet=True))


def test_figures_of_the_rows_and_the_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = dict(zip(transfer_target.NAMES, (0.5, 0.55, 0.3, 0.6, 0.65, 0.8)))
    line = {"rows": accuracies, "metrics": {"source test accuracy of student": 0.9}}
    monkeypatch.setattr(transfer_target, "run", lambda *_: line)
    monkeypatch.setattr(transfer_target, "digits", lambda _: {})
    made = {each.row.name: each for each in transfer_target.usps(lab(tmp_path, "--quick"))}
    assert made["usps_student"].row.value == 0.8 and made["usps_student"].bar == "≥ 0.75 reached"
    assert made["usps_gain"].row.value == pytest.approx(0.3) and made["usps_student_on_source"].row.value == 0.9
    assert made["usps_source_only"].bar == ""
    line |= {"seconds": {"source": 0.1, "student": 90.5}, "trained": {"source only": 60.0}}  # shared with another run
    quick = {each.row.name: each for each in transfer_target.quick(lab(tmp_path, "--quick"))}
    assert quick["quick_seconds"].row.value == 150.5 and quick["quick_gain"].row.value == pytest.approx(0.3)
    text = section(list(made.values()))
    assert "| `usps_student` | 0.8 |  | fraction | ≥ 0.75 reached |" in text


def test_figures_of_an_offsite_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = {"title": "What the owner gives away", "rows": [{"cells": ["", 0, share]} for share in (None, 0.9, 0.8)]}
    sent = {"title": "What is sent", "rows": [{"cells": ["emulator", "", 9.0]}, {"cells": ["delta file", "", 2.0]}]}
    (tmp_path / "results.json").write_text(json.dumps({"summary": {"tables": [left, sent]}}))
    rows = dict(zip(transfer_offsite.ROWS, (0.9, 0.91, 0.93, 0.94)))
    monkeypatch.setattr(transfer_offsite, "run", lambda *_: {"rows": rows, "folder": str(tmp_path)})
    monkeypatch.setattr(transfer_offsite, "source", lambda *_: {})
    made = {each.row.name: each for each in transfer_offsite.offsite(lab(tmp_path, "--quick"))}
    assert made["offsite_plugged_minus_probe"].row.value == pytest.approx(0.03)
    assert made["offsite_onsite_minus_plugged"].bar == "≤ 0.015 reached" and made["offsite_probe"].bar == ""
    assert made["offsite_verbatim_share"].row.value == 0.8 and made["offsite_delta_bytes"].row.value == 2


def test_figures_of_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reptile is compared with prototypes in the same episodes, of which it may have fewer."""
    heads = {"backbone\nprototype\n1": [0.5, 0.7, 0.9], "meta-learned deltas\nprototype\n1": [0.6, 0.7, 0.5]}
    for folder, tensors in (("episodes", heads), ("trained-episodes", {"1": [0.8, 0.8]})):
        (tmp_path / folder).mkdir()
        content = {name: torch.tensor(values) for name, values in tensors.items()}
        safetensors.torch.save_file(content, tmp_path / folder / "accuracies.safetensors")
    (tmp_path / "episodes/episodes.json").write_text(json.dumps({"seconds": 12.5}))
    metrics = {f"5-way {shots}-shot accuracy of {head}": 0.8 for shots in (1, 5) for head in transfer_few_shot.HEADS}
    monkeypatch.setattr(transfer_few_shot, "run", lambda *_: {"metrics": metrics, "folder": str(tmp_path)})
    monkeypatch.setattr(transfer_few_shot, "source", lambda *_: {})
    made = {each.row.name: each for each in transfer_few_shot.few_shot(lab(tmp_path, "--quick"))}
    assert made["fewshot_5way_1shot"].bar == "≥ 0.77 reached" and made["fewshot_5way_5shot"].bar == "≥ 0.92 missed"
    assert made["episodes_seconds"].bar == "≤ 20 reached" and made["fewshot_5way_5shot_lp_plus"].bar == ""
    assert made["reptile_minus_prototype"].row.value == pytest.approx(0.2)
    assert made["reptile_features_minus_prototype"].row.value == pytest.approx(-0.1)


def test_means_of_normalizations_are_compared_with_their_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    better = {"source only": 0.4, "standardized": 0.5, "AdaBN": 0.3, "mean of both": 0.7}
    better |= {"aligned statistics": 0.6, "source and aligned": 0.65}
    lines = iter([better, {**better, "mean of both": 0.55}])
    monkeypatch.setattr(transfer_fresh, "_measured", lambda *_: next(lines))
    made = {each.row.name: each.row for each in transfer_fresh.fresh(lab(tmp_path, "--quick"))}
    assert made["fresh_mean_of_both"].value == pytest.approx(0.625) and made["fresh_mean_of_both"].low == 0.55
    assert made["fresh_mean_of_both_best_of"].value == 0.5 and made["fresh_source_and_aligned_best_of"].value == 1
    assert made["fresh_mean_of_both_minus_better"].low == pytest.approx(-0.05)
    assert made["fresh_source_and_aligned_minus_average"].value == pytest.approx(0.15)
    tree = load_tree(transfer_lab.CONFIGS / "quick.yaml")
    for operations in transfer_fresh.SHIFTS.values():
        tree["data"]["target"]["operations"] = operations
        validate_tree(tree, "quick.yaml")


def test_without_results_a_list_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotMeasuredError):
        transfer_lab.run(lab(tmp_path, "--list"), "usps", "mnist_usps.yaml", {"seed": 0})
    own, made = lab(tmp_path), []
    own.once = lambda key, _: made.append(key) or {}  # type: ignore[method-assign]
    for noise in ({"b": 1}, {"b": 2}):
        monkeypatch.setattr(transfer_lab, "load_tree", lambda _, noise=noise: noise)
        transfer_lab.run(own, "usps", "mnist_usps.yaml", {"seed": 0})
    assert made[0] != made[1], "results of another content of the config are not shown"
    assert figure("sketch_student", [0.4, 0.5], "fraction", "").bar == "≥ 0.48 missed"


def test_the_changes_of_every_part_fit_its_config(tmp_path: Path) -> None:
    own = lab(tmp_path, "--quick")
    data = {"source": {"type": "digits"}, "target": {"type": "digits"}, **transfer_target.RESIDENT}
    for config in ("mnist_usps.yaml", "photo_sketch.yaml"):
        tree = load_tree(transfer_lab.CONFIGS / config)
        validate_tree(merge_trees(tree, {"data": data, **transfer_target.short(own)}), config)
