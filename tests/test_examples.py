"""Every program of ``examples/`` runs, and does what its first line says."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def examples_can_be_imported():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_every_example_has_a_test_and_is_short():
    assert names() == ["delta_to_timm", "own_augmentation", "own_delta", "own_objective", "own_training_loop"]
    for name in names():
        assert f"def test_{name}" in Path(__file__).read_text()
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.slow
def test_own_objective(capsys):
    losses = import_module("own_objective").main()
    assert losses[-1] < 0.5 * losses[0]
    assert "own_objective:Cosine: " in capsys.readouterr().out


def test_own_delta(capsys):
    assert import_module("own_delta").main() == 0
    assert "merging changes the logits by 0" in capsys.readouterr().out


def test_own_augmentation(capsys):
    assert import_module("own_augmentation").main() < 1e-6
    lines = capsys.readouterr().out.splitlines()
    corners = lines[1].partition("[")[2].rstrip("]").split(", ")
    assert len(set(corners)) == 4, "every sample has a shade of its own"


def test_delta_to_timm(tmp_path, capsys):
    assert import_module("delta_to_timm").main(str(tmp_path)) < 1e-5
    assert "logits differ by" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"delta", "merged"}


@pytest.mark.slow
def test_own_training_loop(tmp_path, capsys):
    losses = import_module("own_training_loop").main(str(tmp_path))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert "loss " in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"delta.json", "delta.safetensors"}
