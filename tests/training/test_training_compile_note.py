"""A first compilation, which can take minutes, is told before it begins."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from toy_training import experiment

from distill.run.context import RunContext
from distill.training.module import Distillation
from distill.training.signals import StopSignal


@pytest.mark.parametrize(
    ("compiled", "told"),
    [
        (("student", "teacher"), "student: the first step compiles the student, the teacher: it can take minutes\n"),
        ((), ""),
    ],
)
def test_what_the_first_step_compiles(
    compiled: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function: function)  # to compile nothing at all takes no minutes
    steps: list[str] = []
    console = Console(file=io.StringIO(), width=200)
    step = Distillation.training_step

    def noted(module: Distillation, *arguments: Any) -> Any:
        steps.append(console.file.getvalue())  # type: ignore[attr-defined]
        return step(module, *arguments)

    monkeypatch.setattr(Distillation, "training_step", noted)
    settings = experiment(
        tmp_path,
        objectives=[{"type": "ce"}, {"type": "kd"}],
        training={"epochs": 1, "schedule": {"warmup": 0}, "ema": None},
        **{part: {"compile": True} for part in compiled},
    )
    with StopSignal() as stop:
        context = RunContext.of(settings, stop, console)
        for stage in settings.plan()[:2]:
            context.outputs[stage.name] = stage.run(context, tmp_path / stage.name)
    assert steps and told in steps[0] and ("compiles" in steps[0]) == bool(told)
