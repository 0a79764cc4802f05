"""Writes the report of a run: an HTML page, its figures, ``results.json``, and the table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from distill.files import write_atomic
from distill.report.html import try_report, write_report
from distill.report.items import Item, Metric
from distill.report.summary import Machine, RunSummary
from distill.report.terminal import print_summary
from distill.run.context import RunContext
from distill.run.folder import CONFIG
from distill.run.stage import Stage
from distill.run.trial import trying

RESULTS = "results.json"
PAGE = "report.html"


@dataclass(frozen=True)
class WriteReport(Stage[RunSummary]):
    """Writes the report from the items of all earlier stages.

    Args:
        baseline: name of the row that the student is compared with, by class.
        student: name of the student's row.
    """

    baseline: str = "linear probe"
    student: str = "student"

    first_rank: ClassVar[bool] = True
    recorded: ClassVar[bool] = False

    def check(self, context: RunContext) -> None:
        """Make the report of the untrained student, its figures in one theme."""
        if context.trial is not None and context.folder is not None and context.outputs:
            with trying(f"{self.name}: the report"):
                try_report(self._summary(context, context.folder.path))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> RunSummary:
        assert context.folder is not None
        path = context.folder.path
        summary = self._summary(context, path)
        write_report(path, summary)
        content = {
            "results": [item.model_dump(mode="json") for item in _items(context) if isinstance(item, Metric)],
            "summary": summary.model_dump(mode="json", exclude={"curves", "config"}),
        }
        write_atomic(path / RESULTS, json.dumps(content, indent=2).encode())
        if context.console is not None:
            print_summary(summary, context.console)
        return summary

    def load(self, context: RunContext, folder: Path) -> RunSummary:
        return self.run(context, folder)

    def _summary(self, context: RunContext, path: Path) -> RunSummary:
        assert context.folder is not None
        return RunSummary.of(
            _items(context),
            title=path.name,
            seed=context.seed,
            machine=Machine.here(),
            config=(path / CONFIG).read_text(),
            finished=datetime.now().isoformat(" ", "minutes"),
            seconds=context.folder.record["stages"],
            paths={"report": path / PAGE, "config": path / CONFIG},
            baseline=self.baseline,
            student=self.student,
        )


def _items(context: RunContext) -> list[Item]:
    return [item for of_stage in context.items.values() for item in of_stage]
