"""Whole runs in the process of the tests, without what costs seconds and has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console

from distill.experiments.base import Experiment
from distill.run.runner import run_plan

LEFT_OUT = ("verify", "preview")
"""Stages that start a process or draw."""


def run_here(settings: Experiment, resume: bool = False, only: tuple[str, ...] = ()) -> Path:
    """Run an experiment, or the stages named ``only``, without figures and verification; returns the run's folder."""
    stages = [stage for stage in settings.plan() if not only or stage.name in only]
    stages = [stage for stage in stages if stage.name not in LEFT_OUT]
    with (
        patch("distill.stages.report.write_report", lambda *_: None),
        patch("distill.stages.report.try_report", lambda *_: None),
    ):
        return run_plan(settings, stages, settings.model_dump(mode="json"), resume=resume, console=Console(quiet=True))


def summary(run: Path) -> dict[str, Any]:
    """The content of a run's report."""
    return json.loads((run / "results.json").read_text())["summary"]
