"""``benchmarks/serving.py``: its answers prove whose delta and head gave them; its parts on toy results."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import distill
from distill.training.signals import StopSignal

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import serving  # noqa: E402
import serving_load  # noqa: E402
from accuracy import Notebook  # noqa: E402
from lab import Lab, options  # noqa: E402


def lab(out: Path, *arguments: str) -> Lab:
    given = options("", serving.PARTS, str(out)).parse_args(["--out", str(out), *arguments])
    with StopSignal() as stop:
        return Lab(given, Notebook(out, {}), stop, Console(quiet=True))


def test_an_answer_by_the_delta_or_head_of_another_task_is_told(tmp_path: Path) -> None:
    plain = distill.create_student(serving.LITE0, size=32).model
    names = serving_load.write_tenants(tmp_path, plain, 4)
    bank = serving.filled(plain, tmp_path, names)
    second, third = bank.load("2"), bank.load("3")
    mixed = dataclasses.replace(second, changes={**second.changes, "bn2": third.changes["bn2"]})
    image = torch.randn(1, 3, 32, 32)
    answers = [row.tolist() for row in bank.batch(image.expand(3, -1, -1, -1), ["2", mixed, third])]
    assert [serving_load.answered_by(each) for each in answers] == [(2, 2), (3, 2), (3, 3)]
    assert answers[0][-1] == pytest.approx(answers[2][-1], rel=1e-2), "the last logit is the image's"

    of_image = [answers[0][-1], answers[0][-1] + 10]
    good = {"task": "2", "logits": answers[0]}
    assert serving_load.wrong_in(200, good, "2", 0, of_image) == ""
    assert serving_load.wrong_in(200, {**good, "logits": answers[1]}, "2", 0, of_image) == (
        "the delta of 3, the head of 2, image 0"
    )
    assert "image 0" in serving_load.wrong_in(200, good, "2", 1, of_image)
    assert serving_load.wrong_in(422, {}, "2", 0, of_image).startswith("422")
    assert serving_load.wrong_in(200, {**good, "task": "3"}, "2", 0, of_image)


def test_parts_make_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = ("bank", "one_model", "in_turn", "switch", "peft", "one_task")
    times = {
        "seconds": {side: [1.0 + number, 2.0 + number] for number, side in enumerate(sides)},
        "error": 1e-6,
        "merged_error": 2e-6,
        "bank_bytes": 1,
        "merged_bytes": 10,
    }
    monkeypatch.setattr(serving, "times", lambda size, rounds: times)
    made = {each.row.name: each for each in serving.batch(lab(tmp_path / "b", "--quick"))}
    assert made["batch16_vs_one_model_64"].row.value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert made["bank_memory_vs_merged"].bar == "≤ 0.15 reached" and made["batch_error_64"].bar == "≤ 5e-06 reached"

    many = {
        "seconds": {"10": [1.0], "50": [1.0], "100": [1.2]},
        "kept": [5, 5, 5],
        "resident": [100, 100, 105],
        "add": 1e-3,
        "load": 1e-2,
    }
    monkeypatch.setattr(serving, "among", lambda counts, rounds: many)
    made = {each.row.name: each for each in serving.tenants(lab(tmp_path / "t", "--quick"))}
    assert made["time_1000_vs_10"].bar == "≤ 1.1 missed" and made["memory_1000_vs_10"].bar == "≤ 1.1 reached"

    counted = {"wrong": ["x"], "seconds": [0.1] * 100, "batches": [50, 50], "reads": 3, "wall": 2.0}
    monkeypatch.setattr(serving, "served", lambda count, requests: counted)
    made = {each.row.name: each for each in serving.load(lab(tmp_path / "l", "--quick"))}
    assert made["load_wrong"].bar == "= 0 missed" and made["load_images_a_pass"].row.value == 50
