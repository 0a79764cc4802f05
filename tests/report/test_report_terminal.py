import math

import pytest
from rich.console import Console

from distill.report.items import Check, Row
from distill.report.terminal import print_summary


def printed(run, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    with console.file:
        print_summary(run, console)
        return console.export_text()


@pytest.mark.parametrize("width", [80, 120])
def test_all_numbers_fit(run, width):
    long = run.model_copy(
        update={
            "rows": (*run.rows, Row(name="another model", what="x " * 60, trained=123_456_789, bytes=123_400_000)),
            "paths": {"delta": "runs/" + "x" * 150},
        }
    )
    text = printed(long, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    for words in (
        "83.3 %",
        "66.7 %",
        "123,456,789",
        "1 h 07 min",
        "92.4 kB",
        "13.6 MB",
        "macro F1 82.2 % (50.0 to 100.0)",
        "verified: 1 of 1 checks passed",
    ):
        assert words in text.replace("\u00a0", " ")


def test_the_description_has_a_column_where_there_is_room(run):
    def lines_with(text):
        return [line for line in text.splitlines() if "low-rank deltas" in line]

    assert "83.3" in lines_with(printed(run, 120))[0] and "83.3" not in lines_with(printed(run, 80))[0]


def test_missing_parts(bare, run):
    assert printed(bare, 80).split() == ["bare"]
    lost = run.model_copy(update={"rows": (Row(name="student", accuracy=math.nan),), "sizes": {}, "seconds": {}})
    assert "–" in printed(lost, 80)


def test_names_are_text_and_never_markup(run):
    odd = run.model_copy(update={"title": "[red]t[/red]", "paths": {"[bold]": "[/] x"}, "warnings": ("[link=x]w",)})
    text = printed(odd, 80)
    assert all(words in text for words in ("[red]t[/red]", "[bold]", "[/] x", "[link=x]w"))


def test_a_failed_check_is_named(run):
    failed = Check(name="same top-1", passed=False, detail="3 of 256 differ")
    text = printed(run.model_copy(update={"verification": (failed,)}), 80)
    assert "failed: same top-1. 3 of 256 differ" in text and "verified" not in text


def test_last_and_best_epoch_are_told_apart(run):
    watched = run.rows[2].model_copy(update={"last_epoch": 0.691, "best_epoch": 0.702, "best_at": 213})
    text = printed(run.model_copy(update={"rows": (*run.rows[:2], watched)}), 100).replace("\u00a0", " ")
    assert "student: last epoch 69.1 %, best epoch 70.2 % (213, chosen on test: too high)" in text
    assert "best epoch" not in printed(run, 100)
