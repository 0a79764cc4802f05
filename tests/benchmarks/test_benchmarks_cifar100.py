"""The CIFAR table: every cell is a recipe, measured once, beside figures that name their source."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

from distill.training.signals import StopSignal

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import cifar100  # noqa: E402
from accuracy import Notebook  # noqa: E402


def given(out: Path, **changes) -> Namespace:
    return Namespace(**{"out": out, "overrides": [], "cells": None} | changes)


def test_every_cell_is_a_recipe_for_both_pairs(tmp_path: Path) -> None:
    for pair, (teacher, student) in cifar100.PAIRS.items():
        for cell in cifar100.CELLS:
            made = cifar100.experiment(pair, cell, 3, given(tmp_path, overrides=["data.batch_size=32"]))
            assert (made.seed, made.output, made.data.batch_size) == (3, tmp_path, 32)
            assert made.student.network.model == f"{student}_cifar" and made.training.test_every == 1
            assert (made.training.epochs, made.data.on_device, made.data.val_fraction) == (240, True, 0)
            if cell == "scratch":
                assert made.teacher is None
                continue
            assert made.teacher and made.teacher.networks[0].model == f"{teacher}_cifar"
            assert made.fit_teacher and made.fit_teacher.training.test_every == 1
            assert made.augment.policy == ("independent" if cell.endswith("dual") else "identical")
            if cell == "dkd":
                assert made.objectives[1].beta == (8 if student == "resnet8x4" else 2)


def test_cells_are_measured_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, pair = [], "resnet56 → resnet20"

    def measured(made, at, cell, *unused) -> dict[str, float | int]:
        asked.append((cell, made.seed))
        return {"last": 0.69 + 0.01 * made.seed, "best": 0.70, "best_at": 200, "seconds": 1.0}

    monkeypatch.setattr(cifar100, "measured", measured)
    console = Console(file=(tmp_path / "said").open("w"), width=160)
    with StopSignal() as stop, console.file:
        for seed in (0, 0, 1):
            book = Notebook(tmp_path, {"overrides": []})
            cifar100.fill(book, given(tmp_path, cells="teacher,kd"), pair, seed, stop, console)
        with pytest.raises(SystemExit, match="there is no cell 'kdd', only teacher, scratch"):
            cifar100.fill(book, given(tmp_path, cells="kdd"), pair, 0, stop, console)
        cifar100.report(Notebook(tmp_path, {"overrides": []}), [], console, tmp_path / "table.md")
    assert asked == [("teacher", 0), ("kd", 0), ("teacher", 1), ("kd", 1)]
    table = (tmp_path / "table.md").read_text()
    assert f"| {pair} | KD | 69.50 ± 0.71 | 70.00 ± 0.00 | 70.66 | CRD |" in table
    assert f"| {pair} | DKD |  |  | 71.97 | DKD |" in table and "Measured: seeds 0, 1, on" in table
    with pytest.raises(SystemExit, match="name another --out"):
        Notebook(tmp_path, {"overrides": ["training.epochs=1"]})


def test_published_figures_are_of_cells_and_name_their_source() -> None:
    for (pair, cell), (value, source) in cifar100.PUBLISHED.items():
        assert pair in cifar100.PAIRS and cell in cifar100.CELLS and 60 < value < 80 and source in cifar100.SOURCES


def test_the_table_in_the_tree_is_what_the_script_writes(tmp_path: Path) -> None:
    """Without a GPU its own columns are empty, and it says so."""
    kept = (ROOT / "benchmarks" / "results" / "cifar100.md").read_text()
    if "Nothing is measured yet" in kept:
        with (tmp_path / "said").open("w") as file:
            cifar100.report(Notebook(tmp_path, {}), [], Console(file=file), tmp_path / "table.md")
        assert (tmp_path / "table.md").read_text() == kept
