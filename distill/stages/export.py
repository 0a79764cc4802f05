"""The trained student as files: the delta file, and every export target."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.deltas.inventory import block_of, inventory
from distill.export.manifest import Result
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.report.items import Files, Item, LayerBytes, Note, Sizes
from distill.run.context import RunContext
from distill.run.export import export_paths, export_student, structural_types
from distill.run.stage import Ref, Stage
from distill.stages.evaluate import Evaluation
from distill.stages.outputs import TrainedStudent

SIZES = "sizes.json"


@dataclass(frozen=True)
class ExportedStudent:
    """What was written."""

    folder: Path
    sizes: dict[str, int]
    """What → its bytes."""


@dataclass(frozen=True)
class ExportStudent(Stage[ExportedStudent]):
    """Writes the student.

    Args:
        settings: of the student.
        student: after its training.
        evaluation: its measured numbers, which the files carry.
    """

    settings: StudentSettings
    student: Ref[TrainedStudent]
    evaluation: Ref[Evaluation]

    first_rank: ClassVar[bool] = True

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"student": self.settings.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> ExportedStudent:
        metrics = context.get(self.evaluation).metrics
        results = [Result.model_validate(metric.model_dump()) for metric in metrics]
        sizes = export_student(context, self.settings, context.get(self.student).student, folder, results)
        write_atomic(folder / SIZES, json.dumps(sizes, indent=2).encode())
        return ExportedStudent(folder, sizes)

    def load(self, context: RunContext, folder: Path) -> ExportedStudent:
        return ExportedStudent(folder, json.loads((folder / SIZES).read_text()))

    def report(self, context: RunContext, output: ExportedStudent) -> Iterable[Item]:
        yield Sizes(bytes=output.sizes)
        for delta in inventory(context.get(self.student).student.model):
            yield LayerBytes(
                site=delta.site,
                block=block_of(delta.site),
                type=delta.type,
                rank=delta.rank,
                bytes=delta.bytes,
                layer_bytes=delta.layer_bytes,
            )
        if structural := structural_types(self.settings):
            yield Note(text=f"no merged folder: {', '.join(structural)} cannot be merged; see export/delta")
        yield Files(paths={name: path for name, path in export_paths(output.folder).items() if path.is_dir()})
