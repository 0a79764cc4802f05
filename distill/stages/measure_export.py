"""Measures the exported formats: accuracy, size, time and memory, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from distill.data.experiment_data import ExperimentData
from distill.export.compared import chosen, format_items
from distill.export.settings import DELTA, ExportSettings, MeasureSettings
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.report.items import FormatFigures, Item
from distill.run.context import RunContext
from distill.run.export import written_targets
from distill.run.measure_export import measure_export
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.export import ExportedStudent
from distill.stages.outputs import TrainedStudent

FIGURES = "figures.json"


@dataclass(frozen=True)
class MeasureExport(Stage[tuple]):
    """Measures every exported format beside the trained student, see :mod:`distill.export.measure`.

    Args:
        settings: of the student.
        export: the targets, and how they are measured.
        student: in memory.
        exported: the files.
        evaluated: the data that the student is evaluated on, of those of the run.
    """

    settings: StudentSettings
    export: ExportSettings
    student: Ref[TrainedStudent]
    exported: Ref[ExportedStudent]
    evaluated: Callable[[ExperimentData], ExperimentData]

    first_rank: ClassVar[bool] = True

    def check(self, context: RunContext) -> tuple[FormatFigures, ...] | None:
        """Measure the export of the untrained student in this process: two calls of each format."""
        trained, exported = context.find(self.student), context.find(self.exported)
        if trained is None or exported is None:
            return None
        measure = self._measure.model_copy(update={"rounds": 1})
        with trying(f"{self.name}: running the export of the untrained student"):
            return self._measured(context, trained, exported, measure)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        measure = self._measure.model_dump(mode="json", exclude={"pick"})
        return {**self.export.model_dump(mode="json", include={"targets"}), "measure": measure}

    def run(self, context: RunContext, folder: Path) -> tuple[FormatFigures, ...]:
        measured = self._measured(context, context.get(self.student), context.get(self.exported), self._measure)
        write_atomic(folder / FIGURES, json.dumps([each.model_dump() for each in measured], indent=2).encode())
        return measured

    def load(self, context: RunContext, folder: Path) -> tuple[FormatFigures, ...]:
        return tuple(FormatFigures.model_validate(each) for each in json.loads((folder / FIGURES).read_text()))

    def report(self, context: RunContext, output: tuple[FormatFigures, ...]) -> Iterable[Item]:
        yield from format_items(output, chosen(output, self._measure.pick))

    @property
    def _measure(self) -> MeasureSettings:
        return self.export.measure or MeasureSettings()

    def _measured(
        self, context: RunContext, trained: TrainedStudent, exported: ExportedStudent, measure: MeasureSettings
    ) -> tuple[FormatFigures, ...]:
        within = replace(context, data=self.evaluated(context.data))
        written = written_targets(self.export, exported.folder)
        targets = {path: target for path, target in written.items() if target.elsewhere() is None}
        delta = None if trained.student.full else exported.folder / DELTA
        return tuple(measure_export(within, self.settings, trained.student, targets, measure, delta))
