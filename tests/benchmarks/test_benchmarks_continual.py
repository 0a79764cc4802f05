"""The parts of ``benchmarks/continual.py`` on toy features and toy results; one real stream, read in both ways."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests" / "continual")]
import continual  # noqa: E402
import continual_branch  # noqa: E402
import continual_data  # noqa: E402
import continual_growth  # noqa: E402
import continual_parts  # noqa: E402
import continual_runs  # noqa: E402
from accuracy import Notebook  # noqa: E402
from continual_heads import JOINT, SEQUENTIAL, Frozen, learn, seconds_of_sums  # noqa: E402
from continual_lab import BARS, figure  # noqa: E402
from lab import Lab, NotMeasuredError, page, save_rows, section, show  # noqa: E402
from toy_stream import verified_here  # noqa: E402

from distill.config import validate_tree  # noqa: E402
from distill.continual.heads.ridge import Ridge  # noqa: E402
from distill.continual.heads.slda import SLDA  # noqa: E402
from distill.deltas.halrp import HALRP  # noqa: E402
from distill.run import prepare  # noqa: E402
from distill.run.context import RunContext  # noqa: E402
from distill.training.evaluate import Predictions  # noqa: E402
from distill.training.signals import StopSignal  # noqa: E402
from distill.yaml_tree import load_tree, merge_trees  # noqa: E402


def lab(out: Path, *arguments: str) -> Lab:
    given = continual.parser().parse_args(["--out", str(out), "--data", str(out / "data"), *arguments])
    with StopSignal() as stop:
        return Lab(given, Notebook(out, {}), stop, Console(quiet=True))


def test_a_part_of_the_data_has_the_first_images_of_each_class(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number, labels in enumerate(([2, 0, 0, 1], [1, 1, 2])):
        rows = {"label": labels, "image": [f"{number}/{row}" for row in range(len(labels))]}
        pq.write_table(pa.table(rows, metadata={b"names": b"kept"}), tmp_path / f"train-{number}.parquet")
    made = pq.read_table(continual_data.part_of(tmp_path, tmp_path / "part", {"train": 1}) / "train.parquet")
    assert made.to_pydict() == {"label": [2, 0, 1], "image": ["0/0", "0/1", "0/3"]}
    assert made.schema.metadata == {b"names": b"kept"}
    with pytest.raises(SystemExit, match=r"has no test\*.parquet"):
        continual_data.part_of(tmp_path, tmp_path / "part", {"test": 1})


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Frozen]:
    """A stream of three tasks of two classes, with features in which the classes are apart."""
    made = continual_growth.experiment(tmp_path_factory.mktemp("heads"), 3, [])
    made = made.model_copy(update={"heads": (SLDA.Settings(), Ridge.Settings())})
    with StopSignal() as stop:
        context = RunContext.of(made, stop)
    splits = {}
    for number, split in enumerate(("train", "test")):
        labels = torch.arange(60) % 6
        noise = torch.randn(60, 8, generator=torch.Generator().manual_seed(number))
        features = 4 * torch.eye(6, 8)[labels] + 0.1 * noise
        splits[split] = Predictions(features, labels, torch.arange(60))
    return made, Frozen(context, splits, 1.0)  # type: ignore[arg-type]


def test_heads_on_features_that_separate_the_classes(separable: tuple[Any, Frozen]) -> None:
    """Heads in closed form and the joint one make no mistake; the sequential one forgets and is right within a task."""
    result = learn(*separable)
    assert (result["sizes"], result["classes"], result["tasks"]) == ({"train": 60, "test": 60}, 6, 3)
    models = result["models"]
    assert models.keys() == {"slda", "ridge", JOINT, SEQUENTIAL}
    for name in ("slda", "ridge", JOINT):
        assert models[name]["class"]["last"] == models[name]["task"]["last"] == 1
    assert models["slda"]["class"]["forgetting"] == 0
    assert models[SEQUENTIAL]["class"]["last"] < 1 and models[SEQUENTIAL]["class"]["forgetting"] > 0
    assert len(seconds_of_sums(separable[1], separable[0], rounds=2, images=10)) == 2


def test_figures_say_whether_their_bar_is_reached() -> None:
    for name, (sign, limit) in BARS.items():
        assert figure(name, [limit], "fraction", "").bar == f"{sign} {limit:g} reached"
        worse = limit + (0.1 if sign == "≤" else -0.1)
        assert figure(name, [worse], "fraction", "").bar == f"{sign} {limit:g} missed"
    assert figure("another", [1.0], "s", "").bar == ""


def test_the_page_shows_every_figure_and_what_it_is_of() -> None:
    text = section([figure("slda_last_flowers", [0.9, 0.92], "fraction", "orders 0, 1")])
    assert "| `slda_last_flowers` | 0.91 | 0.9 … 0.92 | fraction | ≥ 0.9 reached |" in text
    assert "- `slda_last_flowers`: orders 0, 1\n" in text and "torch" in text


def test_what_is_not_measured_again_is_kept(tmp_path: Path) -> None:
    path, rows = tmp_path / "page.md", tmp_path / "rows.json"
    first = {"bank": [figure("bank_til", [0.8], "fraction", "seed 0")], "opd": [figure("bank_opd", [0.0], "s", "")]}
    path.write_text(page("A stream", "About.", ["opd", "bank"], first, path) + "\n## Notes\n\nWhat was tried.\n")
    save_rows(rows, [each.row for part in first.values() for each in part])
    before = path.read_text()
    assert before.index("## opd") < before.index("## bank") < before.index("## Notes")
    assert page("A stream", "About.", ["opd", "bank"], {}, path) == before
    second = {"opd": [figure("bank_opd", [0.5], "s", "")]}
    again = page("A stream", "About.", ["opd", "bank"], second, path)
    assert "`bank_opd` | 0.5" in again and "`bank_til` | 0.8" in again and again.endswith("What was tried.\n")
    save_rows(rows, [second["opd"][0].row])
    assert {each["name"]: each["value"] for each in json.loads(rows.read_text())} == {"bank_til": 0.8, "bank_opd": 0.5}


def test_a_result_is_measured_once(tmp_path: Path) -> None:
    asked = []

    def work() -> dict[str, Any]:
        asked.append(1)
        return {"value": 3}

    for _ in range(2):
        assert lab(tmp_path).once({"seed": 0}, work)["value"] == 3
    assert lab(tmp_path).once({"seed": 1}, work)["value"] == 3
    assert len(asked) == 2
    with pytest.raises(NotMeasuredError):
        lab(tmp_path, "--list").once({"seed": 2}, work)


TASKS = [f"task-{number:02}" for number in range(1, 11)]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Results of a toy in place of those of runs, whose configs are checked and noted."""
    noted: list[dict[str, Any]] = []

    def stream_run(of: Lab, part: str, config: str, changes: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
        tree = merge_trees(load_tree(continual_runs.CONFIGS / config), changes)
        validate_tree(tree, config)
        noted.append(tree)
        higher = 0.1 * (tree["strategy"]["type"] in ("bank", "merge_and_go"))
        metrics = {
            continual_branch.LINEAR: 0.5 + higher,
            "student + slda, class: accuracy_micro": 0.9,
            "slda, class: accuracy_micro": 0.88,
        }
        for name in ("student", "slda", "sequential", "task heads", "separate"):
            own = 0.5 + higher * (name == "student")
            metrics |= {f"{name}, task: accuracy_{kind}": own for kind in ("micro", "macro")}
            metrics[f"{name}, task: forgetting"] = 0.3 * (name == "sequential")
            metrics[f"{name}, class: forgetting"] = 0.9 * (name == "sequential")
            for at, task in enumerate(TASKS, 1):
                metrics[f"{name}, task: served bytes after {task}"] = 1000 * at
                metrics[f"{name}, task: growth after {task}, served"] = 1 + 0.01 * at
        order = tree["stream"].get("task_order", "A")
        final = dict.fromkeys(TASKS, 0.5 + 0.1 * (order == "B"))
        return {"metrics": metrics, "final": {"student, task": final}, "tasks": TASKS, "seconds": 10.0, "useful": 9.8}

    for part in (continual_parts, continual_branch):
        monkeypatch.setattr(part, "stream_run", stream_run)
    for user in (continual_data, continual_branch):
        monkeypatch.setattr(user, "part_of", lambda *unused: tmp_path)
    return noted


def test_parts_of_runs(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    at = lab(tmp_path, "--quick")
    values = {
        each.row.name: each.row.value
        for part in ("bank", "opd", "adapted", "halrp", "branch", "overhead")
        for each in continual.PARTS[part](at)
    }
    expected = {
        "bank_til_minus_heads": 0.1,
        "bank_forgetting": 0,
        "bank_served_bytes_a_task": 1000,
        "bank_opd": 0.1,
        "adapted_slda_minus_slda": 0.02,
        "halrp_acc_minus_sequential": 0.1,
        "halrp_growth": 0.09,
        "halrp_aopd": 0.1,
        "branch_minus_finetune_linear": 0.1,
        "branch_linear_simclr": 0.6,
        "stream_overhead": 0.02,
        "quick_stream_overhead": 0.02,
        "quick_sequential_forgetting": 0.9,
        "quick_sequential_til_forgetting": 0.3,
        "quick_bank_forgetting": 0,
        "quick_bank_served_bytes_a_task": 1000,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    lenet = [tree for tree in runs if tree["student"]["network"]["model"] == "lenet_20_50"]
    assert [tree["controls"]["separate"] for tree in lenet].count(True) == 1, "it is the same in every order"
    assert {tree["training"]["epochs"] for tree in lenet} == {2}
    assert {tree["stream"]["task_order"] for tree in lenet} == {"A", "B"}


def test_figures_of_continued_runs_are_not_measured(tmp_path: Path) -> None:
    lines = [{"seconds": None, "useful": None}]
    rows = [*continual_parts.spent_elsewhere("stream_overhead", "bank_stream_seconds", lines, "seeds 0")]
    text = section(rows)
    assert "| `stream_overhead` | not measured |  | share | ≤ 0.05 |" in text
    assert "| `bank_stream_seconds` | not measured |  | s |  |" in text
    assert "seeds 0; every run was stopped and continued" in text and section([]) == "Not measured."
    show(Console(quiet=True), "bank", rows)


def test_choosing_ranks_is_part_of_the_time_in_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"head": {}, "entries": []}
    monkeypatch.setattr(prepare, "_choices", lambda *_: time.sleep(0.05) or content)
    monkeypatch.setattr(prepare, "trial_student", lambda *_: None)
    monkeypatch.setattr(prepare, "_from_choice", lambda *made: made[1])
    entry = HALRP.Settings(ranks={"alpha": 0.9})  # type: ignore[arg-type]
    spec: Any = SimpleNamespace(settings=SimpleNamespace(deltas=[entry], start=None))
    unused: Any = None
    with continual_runs.timing() as spent:
        assert prepare.prepare(spec, unused, tmp_path, "student", 1) == content
    assert spent.seconds >= 0.05
    before = spent.seconds
    prepare._choices(spec, unused)
    assert spent.seconds == before, "the function is put back"


def test_options_are_said_and_used(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    at = lab(tmp_path, "--epochs", "5", "--seeds", "4,5", "--set", "data.batch_size=16")
    first = next(continual.PARTS["bank"](at))
    assert "seeds 4, 5; 5 epochs; with data.batch_size=16" in first.detail
    assert [(tree["seed"], tree["training"]["epochs"]) for tree in runs] == [(4, 5), (5, 5)]


def test_calls_inside_of_others_count_once() -> None:
    spent = continual_runs.Spent()

    def inner() -> None:
        torch.zeros(1)

    timed = spent.around(inner)
    outer = spent.around(lambda: (timed(), timed()))
    outer()
    whole = spent.seconds
    assert whole > 0
    timed()
    assert spent.seconds > whole


@pytest.mark.slow
def test_a_stream_is_run_timed_and_read(tmp_path: Path) -> None:
    at = lab(tmp_path)
    made = continual_growth.experiment(tmp_path, 2, [])
    tree = made.model_dump(mode="json")
    with verified_here():
        result = continual_runs.finished(at, tree)
    assert 0 < result["useful"] < result["seconds"] and result["tasks"] == ["task-1", "task-2"]
    assert result["final"]["student, task"].keys() == {"task-1", "task-2"}
    assert result["metrics"]["student, task: forgetting"] == 0
    second = json.loads((made.output / made.name / "task-2" / "student-test" / "scores.json").read_text())
    assert second["pairs"] == [["task-1", "task-1"], ["task-2", "task-2"]], "no network reads images of another task"
    again = continual_runs.finished(at, tree)
    assert again["seconds"] is None and again["metrics"] == result["metrics"]
    read = continual_growth.learned(at, 2, [])
    assert len(read["seconds"]) == len(read["bytes"]) == 2 and min(read["seconds"]) > 0
    assert continual_growth.served_growth(read) == pytest.approx(1, abs=0.01)


def test_a_wrong_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["continual.py", "--only", "bnak"])
    with pytest.raises(SystemExit, match="there is no part 'bnak', only heads, bank"):
        continual.main()
