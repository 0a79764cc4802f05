"""Verifies that the exported models have the outputs of the trained student."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from distill.export.settings import ExportSettings
from distill.files import write_atomic
from distill.models.settings import StudentSettings
from distill.report.items import Check, Item
from distill.run.context import RunContext
from distill.run.export import verify_export, written_targets
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.export import ExportedStudent
from distill.stages.outputs import TrainedStudent

CHECKS = "checks.json"


@dataclass(frozen=True)
class VerifyExport(Stage[tuple]):
    """Runs the exported models in a new process on real images, and compares their outputs with the student's.

    Args:
        settings: of the student.
        export: the targets, and the number of images.
        student: in memory.
        exported: the files.
    """

    settings: StudentSettings
    export: ExportSettings
    student: Ref[TrainedStudent]
    exported: Ref[ExportedStudent]

    first_rank: ClassVar[bool] = True

    def check(self, context: RunContext) -> tuple[Check, ...] | None:
        """Verify the export of the untrained student, in this process."""
        trained, exported = context.find(self.student), context.find(self.exported)
        if trained is None or exported is None:
            return None
        if trained.student.full and not written_targets(self.export, exported.folder):
            return None  # programs are only traced before training
        with trying(f"{self.name}: loading the export of the untrained student"):
            checks = verify_export(context, self.settings, self.export, exported.folder, trained.student)
        if failed := [check for check in checks if not check.passed]:
            differing = "; ".join(f"{check.name}: {check.detail}" for check in failed)
            raise StageError(f"{self.name}: the export of the untrained student has other outputs: {differing}")
        return tuple(checks)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return self.export.model_dump(mode="json", exclude={"measure"})

    def run(self, context: RunContext, folder: Path) -> tuple[Check, ...]:
        student, exported = context.get(self.student).student, context.get(self.exported)
        checks = verify_export(context, self.settings, self.export, exported.folder, student)
        write_atomic(folder / CHECKS, json.dumps([check.model_dump() for check in checks], indent=2).encode())
        return tuple(checks)

    def load(self, context: RunContext, folder: Path) -> tuple[Check, ...]:
        return tuple(Check.model_validate(check) for check in json.loads((folder / CHECKS).read_text()))

    def report(self, context: RunContext, output: tuple[Check, ...]) -> Iterable[Item]:
        return output
