"""Weights & Biases and MLflow after a killed fit was resumed: every step has one row. Stand-ins follow their rules."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from distill.training.step_keyed import StepKeyedMLFlow, StepKeyedWandb


@dataclass
class WandbRun:
    """``wandb.Run``: rows of one step are merged, and one of an earlier step than the current one is dropped.

    A resumed run begins after its last step.
    """

    rows: dict[int, dict[str, Any]]
    ended: int | None = None

    def __post_init__(self) -> None:
        self.step = max(self.rows, default=-1) + 1

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert self.ended is None and step is not None
        if step >= self.step:
            self.step = step
            self.rows.setdefault(step, {}).update(data)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code

    def define_metric(self, *names: str, **more: Any) -> None: ...


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package, as Lightning's logger imports it; a run's rows are those of its id."""
    package, lib, run = (ModuleType(name) for name in ("wandb", "wandb.sdk.lib", "wandb.wandb_run"))
    stored: dict[str, dict[int, dict[str, Any]]] = {}
    package.run = None  # type: ignore[attr-defined]
    package.stored = stored  # type: ignore[attr-defined]
    package.init = lambda id, **more: WandbRun(stored.setdefault(id, {}))  # type: ignore[attr-defined]
    lib.RunDisabled = run.Run = WandbRun  # type: ignore[attr-defined]
    for module in (package, ModuleType("wandb.sdk"), lib, run):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return package


def log(logger: Any, first: int, last: int, attempt: int) -> None:
    for step in range(first, last + 1):
        logger.log_metrics({"loss": float(step), "attempt": attempt, "epoch": 0}, step)
        if step % 4 == 0:
            logger.log_metrics({"val/accuracy": 0.5}, step)


def test_wandb_drops_repeated_steps(wandb: ModuleType) -> None:
    killed = StepKeyedWandb(id="fit", name="fit")
    log(killed, 1, 8, attempt=1)
    resumed = StepKeyedWandb(id="fit", name="fit")
    log(resumed, 5, 12, attempt=2)
    rows = wandb.stored["fit"]
    assert list(rows) == list(range(1, 13))
    assert [row["attempt"] for row in rows.values()] == [1] * 8 + [2] * 4
    assert all(row["trainer/global_step"] == step for step, row in rows.items())
    assert rows[4]["val/accuracy"] == rows[12]["val/accuracy"] == 0.5
    resumed.finalize("success")
    assert resumed.experiment.ended == 0, "so the next fit of the process gets a run of its own"
    failed = StepKeyedWandb(id="other", name="other")
    log(failed, 1, 1, attempt=1)
    failed.finalize("failed")
    assert failed.experiment.ended == 1


@dataclass
class MlflowClient:
    """``mlflow.MlflowClient``: keeps every row that it is given."""

    rows: list[SimpleNamespace] = field(default_factory=list)

    def get_run(self, run_id: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(metrics={row.key: row.value for row in self.rows}))

    def get_metric_history(self, run_id: str, name: str) -> list[SimpleNamespace]:
        return [row for row in self.rows if row.key == name]

    def log_batch(self, run_id: str, metrics: list[SimpleNamespace]) -> None:
        self.rows += metrics


@pytest.mark.parametrize("prefix", ["", "fit"])
def test_mlflow_is_not_given_repeated_steps(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    tracking, entities = ModuleType("mlflow.tracking"), ModuleType("mlflow.entities")
    tracking.MlflowClient = lambda uri: client  # type: ignore[attr-defined]
    entities.Metric = SimpleNamespace  # type: ignore[attr-defined]
    for module in (ModuleType("mlflow"), tracking, entities):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    monkeypatch.setattr(StepKeyedMLFlow, "experiment", property(lambda logger: client))
    log(StepKeyedMLFlow(run_id="fit", prefix=prefix), 1, 8, attempt=1)
    log(StepKeyedMLFlow(run_id="fit", prefix=prefix), 5, 12, attempt=2)
    before = f"{prefix}-" if prefix else ""
    attempts = [(row.step, row.value) for row in client.rows if row.key == f"{before}attempt"]
    assert attempts == [(step, 1 if step <= 8 else 2) for step in range(1, 13)]
    assert [row.step for row in client.rows if row.key == f"{before}val/accuracy"] == [4, 8, 12]
