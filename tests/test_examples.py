"""Every program of ``examples/`` runs, and does what its first line says."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import serving_load  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def examples_can_be_imported():
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


def names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.py"))


def test_every_example_has_a_test_and_is_short():
    assert names() == [
        "delta_server",
        "delta_to_timm",
        "own_augmentation",
        "own_delta",
        "own_objective",
        "own_training_loop",
    ]
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


@pytest.mark.slow
def test_delta_server(tmp_path):
    """Some hundred requests for tens of tasks, a third of which fit in memory; bad requests fail alone."""
    import distill

    plain = distill.create_student("embedded:tf_efficientnet_lite0", size=32).model
    tenants = serving_load.write_tenants(tmp_path, plain, 24)
    bank = distill.DeltaBank(plain)
    bank.add("0", tmp_path / "0")
    bank.max_bytes = 8 * bank.load("0").size
    for name in tenants[1:]:
        bank.add(name, tmp_path / name)
    answers = serving_load.load_test(bank, tenants, 240, size=32, clients=12)
    assert not answers.wrong and len(answers.seconds) == 240
    assert answers.reads > 24 and len(answers.batches) < 120, "files are read again, and requests share passes"

    path = tmp_path / "5" / "delta.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    for name in tenants[10:20]:
        bank.load(name)  # the task is no longer in memory
    picture = serving_load.pictures(32)[0]
    with serving_load.server(bank, 32) as port, serving_load.connected(port) as own:
        assert serving_load.ask(own, "5", picture) == (422, {"detail": "5: ExportError"})
        assert serving_load.ask(own, "nobody", picture)[0] == 422
        assert serving_load.ask(own, "3", b"no image") == (422, {"detail": "3: UnidentifiedImageError"})
        status, content = serving_load.ask(own, "3", picture)
        assert status == 200 and serving_load.answered_by(content["logits"]) == (3, 3)
