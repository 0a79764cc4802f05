"""The checks before training refuse no valid method, leave no trace in the training, and find what would fail later."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toy_training import PREPARED_IN_RANKS, experiment

from augment.base import Registry
from distill.experiments.distillation import DistillationExperiment
from distill.report.items import Check
from distill.run.context import RunContext
from distill.run.folder import RunFolder
from distill.run.runner import check_stages
from distill.run.stage import StageError
from distill.stages.verify import VerifyExport
from distill.training.signals import StopSignal

# statistics are those of a target domain, which this kind of run does not have.
DELTAS = sorted(Registry("distill.deltas", "Delta").known().keys() - {"statistics"})


def check(
    settings: DistillationExperiment, monkeypatch: pytest.MonkeyPatch, without: frozenset[str] = frozenset()
) -> list[Check]:
    """Check the plan, without some stages; returns the verification of the untrained student's export."""
    checks: list[Check] = []
    original = VerifyExport.check

    def noted(stage: VerifyExport, context: RunContext) -> Any:
        output = original(stage, context)
        checks.extend(output or ())
        return output

    monkeypatch.setattr(VerifyExport, "check", noted)
    folder = settings.output / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("name: run\n")
    with StopSignal() as stop:
        context = RunContext.of(settings, stop)
        context.folder = RunFolder(folder)
        before = torch.get_rng_state()
        check_stages([stage for stage in settings.plan() if stage.name not in without], context)
        assert torch.equal(torch.get_rng_state(), before), "training does not depend on the checks"
    assert not context.outputs and not context.items, "nothing of the trial is left"
    assert {path.name for path in folder.iterdir()} == {"config.yaml"}
    return checks


@pytest.mark.parametrize("method", [*DELTAS, *PREPARED_IN_RANKS, "full"])
def test_every_delta_is_tried(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"deltas": PREPARED_IN_RANKS.get(method, [method])}
    if method == "full":
        changes = {"deltas": [], "train": "full"}
    alone = {"linear_probe": False, "labels_only": False}
    settings = experiment(tmp_path, student=changes, controls=alone)
    checks = check(settings, monkeypatch, without=frozenset({"preview", "report"}))
    assert checks and all(result.passed for result in checks)


@pytest.mark.parametrize("batch_size", [8, 1])
def test_batches_of_any_size_are_tried(batch_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(experiment(tmp_path, data={"batch_size": batch_size}), monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures", "blank_previews")
@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"precision": "bfloat16"}, "teacher": {"dtype": "bfloat16"}},
        {"student": {"compile": True}, "teacher": {"compile": True}},
        {"augment": {"policy": "multicrop", "local": [{"crops": 2}]}, "objectives": [{"type": "kd"}]},
        {"augment": {"mix": {"mixup": 1.0}, "placement": "loader"}, "data": {"workers": 1}, "objectives": ["ce", "kd"]},
        {"data": {"source": {"labeled": False}}, "objectives": ["kd"]},
        {"data": {"on_device": True}},
        {"teacher": None, "objectives": ["ce"]},
        {"teacher": {"cache": {}}, "objectives": ["kd"]},
        {"training": {"optimizer": {"type": "sgd", "lr": 10.0}}},
    ],
)
def test_other_ways_to_train_are_tried(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**changes}
    if "objectives" in changes:
        changes["objectives"] = [{"type": o} if isinstance(o, str) else o for o in changes["objectives"]]
    checks = check(experiment(tmp_path, **changes), monkeypatch)
    assert checks and all(result.passed for result in checks)
    assert not (tmp_path / "teachers").exists(), "no cache is begun"


def test_a_step_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison = [{"type": "ce"}, {"type": "kd"}, {"type": "toy_training:Poison", "step": 0, "value": "nan"}]
    with pytest.raises(StageError, match="student: the loss of the first step is not finite: poison is nan"):
        check(experiment(tmp_path, objectives=poison), monkeypatch)
    poison[2] = {"type": "toy_training:Poison", "step": 0, "gradient": "inf"}
    with pytest.raises(StageError, match="student: the gradient of the first step is not finite"):
        check(experiment(tmp_path, objectives=poison), monkeypatch)


@pytest.mark.usefixtures("blank_figures", "blank_previews")
def test_the_control_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score needs labels in validation, where the student's can be the agreement with the teacher."""
    changes = {"training": {"keep": "best"}, "data": {"source": {"labeled": False}}, "objectives": [{"type": "kd"}]}
    assert check(experiment(tmp_path, **changes), monkeypatch)
