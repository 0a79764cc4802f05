"""The student of a delta file, from which an adaptation without source images starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from distill.export.delta.io import read_delta
from distill.models.settings import StudentSettings
from distill.run.context import RunContext
from distill.run.from_delta import student_from_delta
from distill.run.prepare import StudentSpec
from distill.run.stage import Stage
from distill.run.teacher_network import check_file
from distill.stages.outputs import TrainedStudent
from distill.training.fit import FitSummary


@dataclass(frozen=True)
class LoadStart(Stage[TrainedStudent]):
    """Loads the student of a delta file, and checks its backbone.

    Args:
        start: folder of the delta file.
        student: the same backbone, and the deltas of the file.
    """

    start: Path
    student: StudentSettings

    recorded: ClassVar[bool] = False

    def check_files(self) -> None:
        check_file(self.student.network, "student.network")
        read_delta(self.start)

    def check(self, context: RunContext) -> TrainedStudent:
        return self.run(context, Path())

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"delta": read_delta(self.start)[0].sha256, "student": self.student.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        torch.manual_seed(context.seed)  # of a backbone with random weights
        student, manifest = student_from_delta(self.start, self.student)
        spec = StudentSpec(self.student, context.seed, manifest.num_classes, head=manifest.head)
        what = f"the delta file as it is, SHA-256 {manifest.sha256[:12]}"
        return TrainedStudent("as given", what, student, None, spec, FitSummary(0, 0, 0.0, 0.0, {}, 0, -1), folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        return self.run(context, folder)
