"""Trains the student on both domains, or on the target alone, from a student of the source domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill.data.base import UNLABELED
from distill.data.domains import PREFIX
from distill.models.student import Student
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec
from distill.run.stage import Ref, StageError
from distill.stages.measure_domains import DomainMoments
from distill.stages.outputs import TrainedStudent
from distill.stages.train_student import TrainStudent
from distill.transfer.start import start_from


@dataclass(frozen=True, kw_only=True)
class AdaptStudent(TrainStudent):
    """Trains the student with images of the target domain; none of their labels is read.

    It starts from the deltas and the head of the source-only student, with the target's batch-norm statistics where it
    has a ``statistics`` delta. The result are the weights after the last epoch, averaged with ``training.ema``: nothing
    is validated, since a choice by the source's images would be one for the wrong domain.

    Args:
        source: the student that it starts from.
        moments: of both domains; read if the student has a ``statistics`` delta.
        classes: of the student that it starts from, where all images of the data are of the target; None: half of each
            batch is of the source domain.
    """

    source: Ref[TrainedStudent]
    moments: Ref[DomainMoments]
    classes: tuple[str, ...] | None = None

    def check(self, context: RunContext) -> TrainedStudent:
        if self.classes is None and not context.data.labeled_count:
            raise StageError(f"{self.name}: the source domain has no labels to learn from")
        return super().check(self._within(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        """Of the data only what the fit reads: the result does not depend on test labels."""
        within = self._within(context)
        data = [within.data.fingerprint("train"), within.data.settings.model_dump(mode="json")]
        return {**super().key(within), "data": data}

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().run(self._within(context), folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().load(self._within(context), folder)

    def _prepared(self, context: RunContext, spec: StudentSpec, fit_spec: FitSpec, folder: Path) -> Student:
        return start_from(spec, context.get(self.source).student, context.get(self.moments).statistics, folder)

    def _within(self, context: RunContext) -> RunContext:
        data = context.data
        return replace(context, data=data.with_target() if self.classes is None else data.as_target(self.classes))

    def _fit_spec(self, context: RunContext, *arguments: Any, **named: Any) -> FitSpec:
        return replace(super()._fit_spec(context, *arguments, **named), validates=False)

    def _student_spec(self, context: RunContext, fit_spec: FitSpec, compiled: bool = True) -> StudentSpec:
        """With as many classes as the student that it starts from, whose classes may have no names."""
        spec = super()._student_spec(context, fit_spec, compiled)
        source = context.find(self.source)  # None in the checks of a resumed run that has finished it
        return spec if source is None else replace(spec, classes=source.student.shapes.classes)

    def _what(self, context: RunContext) -> str:
        train = context.data.subset("train")
        labels = int((train.labels != UNLABELED).sum())
        target = sum(id.startswith(PREFIX) for id in train.ids)
        return (f"{labels} source labels, " if labels else "") + f"{target} target images without labels"
