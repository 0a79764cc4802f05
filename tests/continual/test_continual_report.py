"""The report of a stream: one table per setting with the controls marked, curves and heat maps, for many tasks too."""

import math

import pytest
from rich.console import Console

from distill.continual.measured import StreamResult, measured
from distill.continual.scores import Accuracy, TaskScores
from distill.report.items import Headline, Lines, Matrix, Metric, Note, Table
from distill.report.summary import Machine, RunSummary
from distill.report.terminal import print_summary
from distill.stages.stream_items import BELOW, stream_items


def result(tasks: int) -> StreamResult:
    """A bank that forgets nothing, a learner that forgets all, and SLDA between them."""
    names = [f"task-{n:02}" for n in range(1, tasks + 1)]
    stages = []
    for t, task in enumerate(names):
        seen = names[: t + 1]
        right = {"student": lambda name: 90, "sequential": lambda name, t=task: 95 if name == t else 10}
        scores = {
            model: {"class": {name: Accuracy(correct=of(name), images=100) for name in seen}}  # type: ignore[operator]
            for model, of in right.items()
        }
        scores["slda"] = {"class": {name: Accuracy(correct=80, images=100) for name in seen}}
        served = {"student": 200_000 * (t + 1), "sequential": 100_000, "slda": 50_000}
        peak = {"student": served["student"] + 5_000_000}
        seconds = dict.fromkeys(scores, 10.0)
        stages.append(
            TaskScores(task=task, scores=scores, served=served, kept=served, peak=peak, seconds=seconds, backbone=10**7)
        )
    return measured(names, stages)


def items(tasks: int) -> list:
    return list(stream_items(result(tasks), "student", {"student", "sequential"}, seed=3))


def of(kind: type, made: list) -> list:
    return [item for item in made if isinstance(item, kind)]


def test_a_trained_model_below_the_control_is_marked() -> None:
    made = items(3)
    (table,) = of(Table, made)
    assert [(row.cells[0], row.mark) for row in table.rows] == [("student", ""), ("sequential", BELOW), ("slda", "")]
    (note,) = of(Note, made)
    assert "sequential 38.3%" in note.text and "student" not in note.text
    assert {headline.what: headline.value for headline in of(Headline, made)}["served a task"] == 200_000


def test_bytes_are_those_after_each_task_and_growth_is_of_the_backbone() -> None:
    numbers = {metric.name: metric.value for metric in of(Metric, items(3))}
    assert [numbers[f"student, class: served bytes after task-0{n}"] for n in (1, 2, 3)] == [2e5, 4e5, 6e5]
    assert numbers["student, class: growth after task-03, served"] == pytest.approx(0.06)
    assert numbers["student, class: growth after task-03, peak"] == pytest.approx(0.56)
    assert numbers["sequential, class: forgetting"] == pytest.approx(0.85)
    assert not any(math.isnan(value) for value in numbers.values())


def test_one_task_has_a_table_and_no_curve() -> None:
    made = items(1)
    assert len(of(Table, made)) == 1 and not of(Lines, made) and len(of(Matrix, made)) == 3


@pytest.mark.parametrize("width", [80, 120])
def test_twenty_tasks_fit_the_terminal(width: int) -> None:
    machine = Machine(python="3.11", torch="2", threads=1)
    summary = RunSummary.of(
        items(20),
        title="stream",
        seed=0,
        machine=machine,
        config="",
        paths={},
        seconds={f"task-{n}/student": 1.0 for n in range(20)},
    )
    console = Console(width=width, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    with console.file:
        print_summary(summary, console)
        text = console.export_text().replace("\u00a0", " ")
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert len(lines) < 40, "the matrices are not on the terminal"
    assert "student 20.0 s" in text, "the stages of the tasks are added up"
    (row,) = [line.split() for line in lines if line.strip().startswith("sequential") and BELOW in line]
    assert row[2] == "14.2" and ("85.0" in row) and any("peak" in line.split() for line in lines) == (width == 120)
