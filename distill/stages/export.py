"""Exports the trained student: the delta file, and each export target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.deltas.inventory import block_of, inventory
from distill.export.delta.io import reason_unlearned
from distill.export.delta.source_moments import write_source_moments
from distill.export.manifest import Result
from distill.export.settings import DELTA, ExportSettings
from distill.export.targets.base import require
from distill.files import write_atomic
from distill.models.student import Student
from distill.report.items import Files, Item, LayerBytes, Note, Sizes
from distill.run.context import RunContext
from distill.run.export import Exported, export_paths, export_student
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.evaluate import Evaluation
from distill.stages.measure_domains import some_of
from distill.stages.outputs import TrainedStudent
from distill.transfer.moments import batch_norm_inputs, batch_norms_of
from distill.transfer.start import Moments

WRITTEN = "written.json"
MEASURED = 512
"""Most training images whose moments are measured."""


@dataclass(frozen=True)
class ExportedStudent:
    """The folder and the result of an export."""

    folder: Path
    written: Exported


@dataclass(frozen=True)
class ExportStudent(Stage[ExportedStudent]):
    """Writes the student to files.

    Args:
        export: the targets.
        student: after its training.
        evaluation: its measured numbers, which the files contain; None: it is not evaluated.
        classes: names of its classes; None: those of the data.
        measures: whether moments of the training images are measured and written beside the delta file.
    """

    export: ExportSettings
    student: Ref[TrainedStudent]
    evaluation: Ref[Evaluation] | None
    classes: tuple[str, ...] | None = None
    measures: bool = False

    first_rank: ClassVar[bool] = True

    def check_files(self) -> None:
        require(self.export.make_targets())

    def check(self, context: RunContext) -> ExportedStudent | None:
        """Export the untrained student, unless one step has not changed it: an export of that is refused."""
        trained = context.find(self.student)
        if trained is None or context.trial is None or reason_unlearned(trained.student.model):
            return None
        folder = context.trial.folder / self.name
        with trying(f"{self.name}: the export of the untrained student"):
            return ExportedStudent(
                folder, export_student(context, self.export, trained.student, folder, (), self.classes)
            )

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return self.export.model_dump(mode="json", include={"targets", "calibration_images"})

    def run(self, context: RunContext, folder: Path) -> ExportedStudent:
        metrics = context.get(self.evaluation).metrics if self.evaluation is not None else ()
        results = [Result.model_validate(metric.model_dump()) for metric in metrics]
        student = context.get(self.student).student
        exported = export_student(context, self.export, student, folder, results, self.classes, keep=True)
        if not student.full:
            write_source_moments(folder / DELTA, self._moments(context, student))
        write_atomic(folder / WRITTEN, json.dumps(vars(exported), indent=2).encode())
        return ExportedStudent(folder, exported)

    def _moments(self, context: RunContext, student: Student) -> Mapping[str, Moments]:
        sites = batch_norms_of(student.model) if self.measures else []
        if not sites:
            return {}
        loader = some_of(context.data, MEASURED).train_loader(shared=False)
        try:
            return batch_norm_inputs(student, loader, context.device, sites)
        finally:
            loader.close()

    def load(self, context: RunContext, folder: Path) -> ExportedStudent:
        return ExportedStudent(folder, Exported(**json.loads((folder / WRITTEN).read_text())))

    def report(self, context: RunContext, output: ExportedStudent) -> Iterable[Item]:
        yield Sizes(bytes=output.written.sizes)
        for delta in inventory(context.get(self.student).student.model):
            yield LayerBytes(
                site=delta.site,
                block=block_of(delta.site),
                type=delta.type,
                rank=delta.rank,
                bytes=delta.bytes,
                layer_bytes=delta.layer_bytes,
            )
        for title, reason in output.written.refused.items():
            yield Note(text=f"no {title}: {reason}; see export/delta")
        if output.written.skew:
            yield Note(text=output.written.skew)
        yield Files(paths=export_paths(self.export, output.folder))
