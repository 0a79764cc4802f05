"""The runner: plans are checked first, finished stages are loaded, and a stage of one's own is one class."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from augment.base import UserError
from distill.config import validate_tree
from distill.data.base import Split
from distill.experiments.distillation import DistillationExperiment
from distill.files import write_atomic
from distill.report.items import Check, Matrix, Note
from distill.run.context import RunContext
from distill.run.folder import RunError
from distill.run.runner import RECORD, ChecksFailedError, PlanError, check_plan, run_plan
from distill.run.stage import Ref, Stage
from distill.stages.report import WriteReport


class StopError(Exception):
    """The process is gone."""


@dataclass(frozen=True)
class CountImages(Stage[int]):
    """A toy stage, all that it takes in one class."""

    split: Split = "train"
    fails: bool = False
    checks: ClassVar[list[str]] = []
    made: ClassVar[list[str]] = []
    dies_in: ClassVar[str] = ""

    def check(self, context: RunContext) -> None:
        self.checks.append(self.name)
        if self.fails:
            raise UserError(f"{self.name}: wrong, and known before anything runs")

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"data": context.data.fingerprint(), "split": self.split}

    def run(self, context: RunContext, folder: Path) -> int:
        if self.dies_in == self.name:
            raise StopError
        self.made.append(self.name)
        count = len(context.data.subset(self.split))
        write_atomic(folder / "count.txt", str(count).encode())
        return count

    def load(self, context: RunContext, folder: Path) -> int:
        return int((folder / "count.txt").read_text())

    def report(self, context: RunContext, output: int):
        yield Note(text=f"{output} images of {self.split}")
        yield Matrix(title="Counts", rows=(self.split,), columns=("images",), values=((0.5,),))


@dataclass(frozen=True)
class AddUp(Stage[int]):
    counts: tuple[Ref[int], ...]
    expected: int

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"expected": self.expected}

    def run(self, context: RunContext, folder: Path) -> int:
        CountImages.made.append(self.name)
        write_atomic(folder / "sum.txt", str(sum(context.get(ref) for ref in self.counts)).encode())
        return self.load(context, folder)

    def load(self, context: RunContext, folder: Path) -> int:
        return int((folder / "sum.txt").read_text())

    def report(self, context: RunContext, output: int):
        yield Check(name="sum", passed=output == self.expected, detail=str(output))


@pytest.fixture(autouse=True)
def nothing_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"checks": [], "made": [], "dies_in": ""}.items():
        monkeypatch.setattr(CountImages, name, value)


def settings(output: Path, seed: int = 0) -> DistillationExperiment:
    tree = {
        "name": "trial",
        "output": str(output),
        "seed": seed,
        "data": {"source": "digits", "size": 16, "workers": 0},
        "student": {"network": {"model": "test_resnet"}},
        "objectives": [{"type": "ce"}],
        "training": {"accelerator": "cpu"},
    }
    made = validate_tree(tree, "test")
    assert isinstance(made, DistillationExperiment)
    return made


def plan(expected: int = 1797 - 359) -> list[Stage]:
    counts = [CountImages(f"count/{split}", split) for split in ("train", "val")]
    return [*counts, AddUp("sum", tuple(stage.output for stage in counts), expected), WriteReport("report")]


def go(output: Path, stages: list[Stage], resume: bool = False, console: Console | None = None) -> Path:
    made = settings(output)
    return run_plan(made, stages, made.model_dump(mode="json"), resume, console or Console(quiet=True))


def test_a_toy_stage_runs_is_recorded_and_reported(tmp_path: Path) -> None:
    console = Console(record=True, width=80, file=(tmp_path / "out").open("w"))
    folder = go(tmp_path, plan(), console=console)
    console.file.close()
    assert CountImages.made == ["count/train", "count/val", "sum"]
    assert (folder / "count" / "train" / "count.txt").read_text() == "1259"
    record = json.loads((folder / "count" / "train" / RECORD).read_text())
    assert record["key"]["split"] == "train" and record["stage"].endswith(":CountImages")
    assert set(json.loads((folder / "sum" / RECORD).read_text())["inputs"]) == {"count/train", "count/val"}
    summary = json.loads((folder / "results.json").read_text())["summary"]
    assert summary["warnings"] == ["1259 images of train", "179 images of val"]
    assert summary["verification"] == [{"name": "sum", "passed": True, "detail": "1438", "of": "export"}]
    page = (folder / "report.html").read_text()
    assert "1259 images of train" in page and "Counts" in page
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "finished" and list(run["stages"]) == ["count/train", "count/val", "sum", "report"]
    text = (tmp_path / "out").read_text()
    assert text.index("count/train ─") < text.index("count/val ─") < text.index("sum ─")


@pytest.mark.parametrize("dies_in", ["count/train", "count/val"])
def test_killed_between_stages_a_run_goes_on_without_doing_a_finished_one_again(dies_in: str, tmp_path: Path) -> None:
    CountImages.dies_in = dies_in
    with pytest.raises(StopError):
        go(tmp_path, plan())
    before = list(CountImages.made)
    CountImages.dies_in = ""
    if dies_in == "count/train":  # nothing was made, so no folder is left
        go(tmp_path, plan())
    else:
        assert before == ["count/train"]
        CountImages.checks.clear()
        folder = go(tmp_path, plan(), resume=True)
        assert folder.name == "trial" and CountImages.checks == ["count/val"], "a finished stage is not checked again"
    assert CountImages.made == ["count/train", "count/val", "sum"]


def test_all_checks_come_first(tmp_path: Path) -> None:
    stages = [CountImages("first"), CountImages("last", fails=True)]
    with pytest.raises(UserError, match="last: wrong, and known before anything runs"):
        go(tmp_path, stages)
    assert CountImages.checks == ["first", "last"] and CountImages.made == []
    assert not (tmp_path / "trial").exists()


def test_a_check_that_fails_fails_the_run_after_its_report_and_is_made_again(tmp_path: Path) -> None:
    with pytest.raises(ChecksFailedError, match=r"verification failed: sum; see report\.html"):
        go(tmp_path, plan(expected=1))
    assert "failed" in (tmp_path / "trial" / "report.html").read_text()
    assert not (tmp_path / "trial" / "sum" / RECORD).exists()
    CountImages.made.clear()
    with pytest.raises(ChecksFailedError):
        go(tmp_path, plan(expected=1), resume=True)
    assert CountImages.made == ["sum"]


def test_an_output_of_other_content_is_not_taken_for_this_one(tmp_path: Path) -> None:
    CountImages.dies_in = "count/val"
    with pytest.raises(StopError):
        go(tmp_path, plan())
    path = tmp_path / "trial" / "count" / "train" / RECORD
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"key": {"data": "other", "split": "train"}}))
    with pytest.raises(RunError, match=r"count/train was made with another key; start a new run"):
        go(tmp_path, plan(), resume=True)
    path.write_text("{")
    with pytest.raises(RunError, match=r"stage\.json cannot be read"):
        go(tmp_path, plan(), resume=True)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([CountImages("a"), CountImages("a")], "stage 'a': two stages have this name"),
        ([CountImages("a/../b")], r"stage 'a/\.\./b': a name is letters"),
        ([CountImages("a b")], "stage 'a b': a name is letters"),
        (
            [CountImages("count"), AddUp("sum", (Ref("cuont", int),), 0)],
            "stage 'sum' refers to 'cuont', which is not in the plan; did you mean 'count'",
        ),
        (
            [AddUp("sum", (Ref("count", int),), 0), CountImages("count")],
            "stage 'sum' refers to 'count', which does not come before it",
        ),
        (
            [CountImages("count"), AddUp("sum", (Ref("count", str),), 0)],  # type: ignore[arg-type]
            "stage 'sum' expects str from 'count', which makes int",
        ),
    ],
)
def test_a_plan_that_does_not_fit_together_is_an_error_before_anything_runs(
    stages: list[Stage], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(stages)
    with pytest.raises(PlanError, match=message):
        go(tmp_path, stages)
    assert not list(tmp_path.iterdir()) and CountImages.checks == []


def test_every_kind_of_run_has_a_plan_that_fits_together(tmp_path: Path) -> None:
    made = settings(tmp_path)
    names = [stage.name for stage in made.plan()]
    assert names == ["student", "linear-probe", "test", "export", "verify", "preview", "report"]
    check_plan(made.plan())
    with_teachers = validate_tree(
        made.model_dump(mode="json")
        | {"teacher": {"networks": [{"model": "test_resnet"}] * 2}, "fit_teacher": {}, "objectives": ["ce", "kd"]},
        "test",
    )
    check_plan(with_teachers.plan())
    assert [stage.name for stage in with_teachers.plan()][:5] == [
        "teacher-0",
        "teacher-1",
        "student",
        "linear-probe",
        "labels-only",
    ]
