"""Exports a student that was adapted to a target domain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from distill.run.context import RunContext
from distill.stages.export import ExportedStudent, ExportStudent
from distill.stages.measure_domains import target_of


@dataclass(frozen=True)
class ExportAdapted(ExportStudent):
    """Writes the student to files; what it measures on images, it measures on those of the target domain.

    These are the difference of timm's transform from evaluation, and the moments beside the delta file: a later
    adaptation to a third domain aligns its images with those that this student was adapted to.

    Args:
        target: see :func:`distill.stages.measure_domains.target_of`.
    """

    target: tuple[str, ...] | None = None

    def check(self, context: RunContext) -> ExportedStudent | None:
        return super().check(self._within(context))

    def run(self, context: RunContext, folder: Path) -> ExportedStudent:
        return super().run(self._within(context), folder)

    def _within(self, context: RunContext) -> RunContext:
        return replace(context, data=target_of(context, self.target))
