"""The ruler itself: turns are interleaved and timed whole, ratios are taken round by round."""

import importlib
import json
from pathlib import Path

import pytest
from rich.console import Console

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # where Python looks first when a benchmark is run as a script
    return importlib.import_module("measure")


def test_ratio_is_of_each_round_not_of_the_medians(measure):
    actual = measure.ratio("r", over=[2.0, 30.0, 4.0], under=[1.0, 10.0, 4.0])
    assert (actual.value, actual.low, actual.high) == (2.0, 1.5, 2.5)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        measure.ratio("r", [1.0, 2.0], [1.0])


def test_a_row_of_nothing_is_an_error(measure):
    with pytest.raises(ValueError, match="speed: nothing was measured"):
        measure.row("speed", [], "s")


def test_turns_time_what_the_loop_does_with_a_batch(measure):
    """A loop that takes 3 s a step for one side and 5 s for the other, on a clock that it moves itself."""
    now, side, seen = 0.0, "", []

    def before(name):
        nonlocal side, now
        side, now = name, now + 100  # preparing a turn takes long and must not count

    turns = measure.Turns("batch", ("slow", "fast"), 4, 1, 2, before, lambda: now)
    for _, batch in zip(range(len(turns)), turns):
        assert batch == "batch"
        seen.append(side)
        now += {"slow": 5, "fast": 3}[side]
    assert seen[:-1] == ["slow", "slow", "fast", "fast"] * 5
    assert turns.seconds == {"slow": [5.0] * 4, "fast": [3.0] * 4}


def test_the_file_holds_what_the_table_shows(measure, tmp_path):
    rows = [measure.row("share", [0.1, 0.2, 0.3], "share")]
    measure.save(tmp_path / "new" / "rows.json", rows)
    (kept,) = json.loads((tmp_path / "new" / "rows.json").read_text())
    assert kept == pytest.approx({"name": "share", "value": 0.2, "unit": "share", "low": 0.15, "high": 0.25})
    console = Console(record=True, width=80, color_system="truecolor")
    measure.show(console, "title", rows, {"share": 0.05})
    printed = console.export_text()
    assert "0.15 … 0.25" in printed and "≤ 0.05" in printed
