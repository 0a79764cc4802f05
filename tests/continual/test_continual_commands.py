"""``distill continual`` and ``distill evaluate`` of a stream: several orders, and a finished stream that goes on."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from rich.console import Console
from toy_stream import learn, stream, verified_here

from distill.commands.continual import _orders, add_tasks
from distill.commands.stream_continue import continued_experiment
from distill.commands.stream_evaluate import evaluate_stream
from distill.commands.stream_orders import different_orders, orders_of, run_orders
from distill.commands.stream_orders_report import Disparities, FinishedRun, order_items
from distill.continual.errors import ContinualError
from distill.continual.memory.keep import FILE
from distill.continual.memory.store import Store
from distill.continual.open_stream import open_stream
from distill.continual.serve import open_bank
from distill.continual.task import Task
from distill.data.base import DataError
from distill.export.checksummed import ExportError
from distill.report.items import Lines, Matrix, Note
from distill.report.numbers import percent
from distill.run.folder import RunError
from distill.training.signals import Interrupted
from distill.yaml_tree import ConfigError, dump_yaml

QUIET = Console(quiet=True)
MORE = "toy_stream:MoreBlobs"


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Disparities]]:
    """A bank in both orders of its two tasks, and in the first order with a second seed."""
    output = tmp_path_factory.mktemp("orders")
    with verified_here():  # which leaves out the pages of the runs, not the one that compares them
        compared = run_orders(stream(output, controls={"heads": False}), "toy", 2, 2, QUIET)
    return output / "stream-orders", compared


def test_orders_take_one_rank(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"toy: training\.devices: 2: the runs of this command share a process"):
        run_orders(stream(tmp_path, training={"devices": 2}), "toy", 2, 2, QUIET)


@pytest.mark.slow
def test_a_bank_does_not_depend_on_the_order(orders: tuple[Path, list[Disparities]]) -> None:
    root, compared = orders
    of_model = {(each.model, each.setting): each for each in compared}
    assert of_model["student", "task-incremental"].aopd == of_model["student", "task-incremental"].mopd == 0
    assert of_model["slda", "class-incremental"].aopd == 0
    content = json.loads((root / "orders.json").read_text())
    assert content["orders"] == {"order-0": ["task-1", "task-2"], "order-1": ["task-2", "task-1"]}
    assert content["seeds"] == [stream(root).seed, stream(root).seed + 1] and (root / "orders.png").is_file()
    assert len(list(root.glob("features/*/stage.json"))) == 4, "of two tasks and two seeds; orders share them"
    page = (root / "report.html").read_text()
    assert "AOPD of 2 orders, task-incremental" in page and "AOPD of 2 seeds, task-incremental" in page
    assert "by more than the seed does" not in page
    for part in ("range over orders", "range over seeds", "order 0", "order 1", f"seed {content['seeds'][1]}"):
        assert f">{part}<" in page, part
    assert {path.stem for path in (root / "figures").glob("*.png")} >= {"lines-1", "lines-2"}
    final = content["final"]["order-1"]["student · task-incremental"]["task-1"]
    assert f">{percent(final)}<" in page


@pytest.mark.slow
def test_finished_runs_are_not_repeated(
    orders: tuple[Path, list[Disparities]], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, compared = orders
    monkeypatch.setattr("distill.commands.stream_orders.run_plan", lambda *_: pytest.fail("a run begins"))
    assert run_orders(stream(root.parent, controls={"heads": False}), "toy", 2, 2, QUIET) == compared
    with pytest.raises(ConfigError, match=r"made with other settings: .*heads"):
        run_orders(stream(root.parent), "toy", 2, 2, QUIET)


def test_what_continues_an_interrupted_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted(15)

    going_on = stream(tmp_path, name="going-on")
    monkeypatch.setattr("distill.commands.stream_continue.continued_experiment", lambda *_: going_on)
    monkeypatch.setattr("distill.run.runner.check_stages", stopped)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        add_tasks(tmp_path / "old", ["stream.count=1"])
    assert "going-on is saved; distill train going-on --resume continues it" in capsys.readouterr().out


def test_as_many_orders_as_there_are(tmp_path: Path) -> None:
    tasks = open_stream(stream(tmp_path))
    assert different_orders(tasks, 2) == [["task-1", "task-2"], ["task-2", "task-1"]]
    with pytest.raises(ContinualError, match="--orders 3: 2 tasks have only 2 different orders"):
        different_orders(tasks, 3)


def test_a_range_beyond_that_of_seeds_is_a_warning() -> None:
    def run(label: str, accuracy: float, of_seed: bool = False) -> FinishedRun:
        matrix = {"title": "student", "section": "Accuracy matrices, x", "columns": ["a"], "values": [[accuracy]]}
        return FinishedRun(label, {"matrices": [matrix], "lines": []}, of_seed)

    runs = [run("order A", 0.5), run("order B", 0.8), run("seed 1", 0.6, of_seed=True)]
    items = [*order_items([Disparities("student", "x", 0.65, 0.3, 0.3, 0.1, 0.1)], runs, None)]
    (note,) = (item.text for item in items if isinstance(item, Note))
    assert note.startswith("student, x: the order changes accuracies by more than the seed does (AOPD 30.0")
    (matrix,) = (item for item in items if isinstance(item, Matrix))
    assert dict(zip(matrix.rows, (row[0] for row in matrix.values)))["range over orders"] == pytest.approx(0.3)
    assert not any(isinstance(item, Lines) for item in items)


def test_published_orders(tmp_path: Path) -> None:
    settings = stream(tmp_path)
    with pytest.raises(ContinualError, match="A is an order of 10 or 20 tasks, and there are 2"):
        orders_of(settings, ["A", "B"])
    names = [f"c{number}" for number in range(10)]
    ten = [Task(name, (name,), {}) for name in names]
    with patch("distill.commands.stream_orders.open_stream", lambda own: ten if own.stream.task_order is None else []):
        taken = settings.model_copy(update={"stream": settings.stream.model_copy(update={"task_order": 3})})
        orders = orders_of(taken, ["A", "E"])
    assert orders == {"A": names, "E": [f"c{n}" for n in (2, 9, 5, 4, 8, 0, 6, 1, 3, 7)]}


@pytest.mark.parametrize(
    "text, orders", [("3", 3), ("A,C", ["A", "C"]), ("1", None), ("A", None), ("A,A", None), ("Z,A", None)]
)
def test_orders_are_a_number_or_letters(text: str, orders: int | list[str] | None) -> None:
    if orders is not None:
        assert _orders(text) == orders
        return
    with pytest.raises(ConfigError, match=rf"--orders {text}: expected a number of at least 2, or letters from A to E"):
        _orders(text)


@pytest.fixture(scope="module")
def longer(orders: tuple[Path, list[Disparities]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of a finished run that has lost its images and logs, and the run that goes on with it."""
    old = tmp_path_factory.mktemp("old") / "stream"
    shutil.copytree(orders[0] / "order-0", old)
    settings = continued_experiment(
        old, None, [f"data.source={{type: {MORE!r}}}", "stream.task_order=null", f"output={old.parent}"]
    )
    return old, learn(settings)


@pytest.mark.slow
def test_a_finished_stream_goes_on_without_its_images(longer: tuple[Path, Path]) -> None:
    old, new = longer
    before, now = open_bank(old / "export/bank"), open_bank(new / "export/bank")
    assert list(now.tasks) == ["task-1", "task-2", "task-3", "task-4"] and now.classes == tuple("abcdefgh")
    images = torch.rand(5, 3, *now.input.size, generator=torch.Generator().manual_seed(0))
    for task in before.tasks:
        columns = [now.classes.index(name) for name in before.classes]
        assert torch.equal(now(images, task=task)[:, columns], before(images, task=task)), "the same bits"
    of_images = now.infer(images)
    assert of_images.shape == (5,) and int(of_images.max()) < 4


@pytest.mark.slow
def test_accuracies_are_carried_over_where_no_bit_has_changed(longer: tuple[Path, Path]) -> None:
    summaries = [json.loads((run / "results.json").read_text())["summary"] for run in longer]
    (before, now) = (
        next(m for m in summary["matrices"] if (m["title"], m["section"][-16:]) == ("student", "task-incremental"))
        for summary in summaries
    )
    assert [row[:2] for row in now["values"][:2]] == before["values"]
    assert all(row[:2] == before["values"][-1] for row in now["values"][2:])
    rule = next(m for m in summaries[1]["matrices"] if m["title"] == "student + ncm")
    assert rule["values"][-1][:2] == [None, None] and None not in rule["values"][-1][2:]
    assert any(
        "whose images are not read" in text and "task-1, task-2 not measured" in text
        for text in summaries[1]["warnings"]
    )


GO_ON: dict[str, dict[str, Any]] = {
    "memory": {"strategy": {"type": "sequential"}, "memory": {"type": "keyed", "budget": 8}},
    "merge_and_go": {"strategy": {"type": "merge_and_go"}},
    "first_task": {"strategy": {"type": "bank", "base": "first_task"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GO_ON)
def test_other_learners_go_on_from_their_files(kind: str, tmp_path: Path) -> None:
    """One task more, with a learning rate of almost nothing: the logits of the old classes are those of the old run."""
    plain = {"heads": [], "inference": [], "controls": {"heads": False, "gdumb": False}, "stream": {"count": 1}}
    old = learn(stream(tmp_path, **GO_ON[kind], **plain))
    more = [f"data.source={{type: {MORE!r}}}", "training.optimizer.lr=1e-9"]
    new = learn(continued_experiment(old, None, more))
    before, now = open_bank(old / "export/bank"), open_bank(new / "export/bank")
    assert before.classes == tuple("abcd") and now.classes == tuple("abcdefgh") and len(now.tasks) == 2
    images = torch.rand(5, 3, *now.input.size, generator=torch.Generator().manual_seed(0))
    first, second = now.tasks
    with torch.no_grad():
        expected, logits = before(images, task=first), now(images, task=first)[:, :4]
    assert expected.std() > 1e-3
    if kind == "first_task":
        assert torch.equal(logits, expected), "the same bits"
        own = now(images, task=second)[:, 4:]
        assert own.isfinite().all()
    else:
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    if kind == "memory":
        store = Store.load(new / second / "student" / FILE)
        assert len(store) == 8 and set(store.labels) == set("abcdefgh"), "images of the old source, from the memory"


@pytest.mark.slow
def test_what_cannot_go_on(longer: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = longer
    same = continued_experiment(old, None, ["stream.task_order=null"])
    with pytest.raises(ContinualError, match="class 'a' was learned before, in 'task-1'"):
        same.plan()
    config = tmp_path / "new.yaml"
    config.write_text(dump_yaml({"data": {"source": {"type": MORE}}, "strategy": {"type": "sequential"}}))
    other = continued_experiment(old, config, ["stream.task_order=null", f"output={tmp_path}"])
    with pytest.raises(ContinualError, match=r"strategy.type: .* was learned with bank"):
        learn(other)
    wrong = {"data": {"data": 3}, "data.source": {"data": {"source": 3}}, "kind": {"kind": "distillation"}}
    for key, content in wrong.items():
        config.write_text(dump_yaml(content))
        with pytest.raises(ConfigError, match=key):
            continued_experiment(old, config, [])
    damaged = tmp_path / "damaged"
    shutil.copytree(old, damaged)
    path = damaged / "task-1/student/delta/delta.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    changes = [f"data.source={{type: {MORE!r}}}", "stream.task_order=null", f"output={tmp_path}"]
    with pytest.raises((ContinualError, ExportError), match=r"task-1|delta\.safetensors"):
        learn(continued_experiment(damaged, None, changes))
    (damaged / "results.json").unlink()
    with pytest.raises(RunError, match="is not finished"):
        continued_experiment(damaged, None, changes)


@pytest.mark.slow
def test_evaluate_a_stream(longer: tuple[Path, Path]) -> None:
    old, new = longer
    content = json.loads((old / "task-2/student-test/scores.json").read_text())["scores"]["scores"]
    expected = {name: of["correct"] / of["images"] for name, of in content["student"]["task"].items()}
    measured = evaluate_stream(old, "test", QUIET)
    assert {name: measured[name, "task"] for name in expected} == expected
    assert set(measured) == {(task, way) for task in expected for way in ("task", "ncm")}
    assert evaluate_stream(old, "test", QUIET, task="task-2") == {("task-2", "task"): expected["task-2"]}
    assert {name for name, _ in evaluate_stream(new, "test", QUIET, infer="ncm")} == {"task-3", "task-4"}
    every = evaluate_stream(new, "test", QUIET, old_test=True)
    assert set(every) == {(f"task-{n}", way) for n in (1, 2, 3, 4) for way in ("task", "ncm")}
    assert {name: every[name, "task"] for name in expected} == expected, "their networks have not changed"
    with pytest.raises(ExportError, match="--old-test: the run goes on with no other"):
        evaluate_stream(old, "test", QUIET, old_test=True)
    with pytest.raises(ExportError, match="no task 'task-9'; there are task-1, task-2"):
        evaluate_stream(old, "test", QUIET, task="task-9")
    with pytest.raises(DataError, match=r"--images: .*nowhere is no folder"):
        evaluate_stream(old, "test", QUIET, images=old / "nowhere")
