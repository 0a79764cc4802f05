"""Trains a student without labels: objectives compare it with the teacher, and no label of the data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.base import UNLABELED
from distill.data.experiment_data import SPLITS, ExperimentData
from distill.data.split import Subset
from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec
from distill.stages.outputs import TrainedStudent
from distill.stages.train_student import TrainStudent


@dataclass(frozen=True, kw_only=True)
class TrainUnlabeled(TrainStudent):
    """Trains a student without a classifier on images without labels; its result are the weights of the last epoch."""

    def check(self, context: RunContext) -> TrainedStudent:
        return super().check(self._within(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return super().key(self._within(context))

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().run(self._within(context), folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().load(self._within(context), folder)

    def _within(self, context: RunContext) -> RunContext:
        return replace(context, data=unlabeled(context.data))

    def _fit_spec(self, context: RunContext, *arguments: Any, **named: Any) -> FitSpec:
        return replace(super()._fit_spec(context, *arguments, **named), validates=False)

    def _student_spec(self, context: RunContext, *arguments: Any, **named: Any) -> StudentSpec:
        return replace(super()._student_spec(context, *arguments, **named), classes=0)


def unlabeled(data: ExperimentData) -> ExperimentData:
    """The same images without labels and classes."""
    subsets = {}
    for name in SPLITS:
        if data.has_split(name):
            own = data.subset(name)
            subsets[name] = Subset(own.samples, own.indices, np.full_like(own.labels, UNLABELED))
    return data.part((), subsets, data.seed)
