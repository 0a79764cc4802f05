"""What deltas add to the loss: summed, logged, watched, and felt by the weights."""

import csv
from pathlib import Path

import pytest
from toy_training import Watched, experiment, student_fit

from distill.deltas.attach import penalty


def fitted(tmp_path: Path, name: str, **delta: object) -> tuple[Watched, dict[str, float]]:
    """A fit with dense deltas, and the figures of its last log row but the last, by name."""
    watched = Watched()
    settings = experiment(tmp_path, student={"deltas": [{"type": "dense", **delta}]})
    student_fit(settings, tmp_path / name, None, watched)
    with (tmp_path / name / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["step"]) for row in rows if row["name"] == "loss")
    return watched, {row["name"]: float(row["value"]) for row in rows if int(row["step"]) == last}


def size(watched: Watched) -> float:
    return sum(float(value.abs().sum()) for key, value in watched.weights.items() if key.endswith(".D"))


@pytest.mark.slow
def test_a_penalty_is_a_term_of_its_own(tmp_path: Path) -> None:
    free, metrics = fitted(tmp_path, "free")
    assert "loss" in metrics and "loss/penalty" not in metrics
    held, metrics = fitted(tmp_path, "held", l1=1.0)
    assert size(held) < 0.8 * size(free)
    terms = [value for name, value in metrics.items() if name.startswith("loss/")]
    assert metrics["loss/penalty"] > 0 and len(terms) == 4
    assert metrics["loss"] == pytest.approx(sum(terms), rel=1e-4)
    student = held.student
    assert student is not None
    total = penalty(student.sites)
    assert total is not None and total.item() == pytest.approx(size(held), rel=1e-4)
