"""Trains the student on the labeled source domain alone: what the target domain's images are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from distill.export.delta.io import save_delta
from distill.export.delta.source_moments import write_source_moments
from distill.export.settings import DELTA
from distill.report.items import Files, Item
from distill.run.context import RunContext
from distill.run.export import preprocessing
from distill.run.stage import Ref, Stage
from distill.stages.measure_domains import DomainMoments
from distill.stages.outputs import TrainedStudent, check_classes
from distill.stages.train_student import TrainStudent


@dataclass(frozen=True)
class TrainSource(TrainStudent):
    """The source-only student. Runs with equal settings share it, whatever their target domains."""

    row: str = "source only"

    def store(self, context: RunContext, digest: str) -> Path:
        return context.root / "teachers" / digest

    def key(self, context: RunContext) -> Mapping[str, Any]:
        source = context.data.settings.model_dump(mode="json", exclude={"target"})
        return {**super().key(context), "data": [context.data.fingerprint(), source]}


@dataclass(frozen=True)
class ExportSource(Stage[Path]):
    """Writes the delta file of the source-only student, which can be adapted later without the source's images.

    Args:
        source: the source-only student.
        moments: of the source, which are written beside it.
    """

    source: Ref[TrainedStudent]
    moments: Ref[DomainMoments]

    first_rank: ClassVar[bool] = True

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> Path:
        student, classes = context.get(self.source).student, tuple(context.data.classes)
        origin, prepared = student.network.origin, preprocessing(context, student)
        about: dict[str, Any] = {"origin": origin, "labels": classes, "preprocessing": prepared}
        save_delta(folder / DELTA, student.model, student.backbone, **about, stored=student.stored)
        write_source_moments(folder / DELTA, context.get(self.moments).norms)
        return folder / DELTA

    def load(self, context: RunContext, folder: Path) -> Path:
        return folder / DELTA

    def report(self, context: RunContext, output: Path) -> Iterable[Item]:
        yield Files(paths={"delta of the source-only student": output})


@dataclass(frozen=True)
class TrainOracle(TrainStudent):
    """The same student trained on the labels of the target domain. No other stage depends on it."""

    row: str = "oracle"

    def check(self, context: RunContext) -> TrainedStudent:
        check_classes(context.data)
        return super().check(_labeled(context))

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return super().key(_labeled(context))

    def run(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().run(_labeled(context), folder)

    def load(self, context: RunContext, folder: Path) -> TrainedStudent:
        return super().load(_labeled(context), folder)

    def _what(self, context: RunContext) -> str:
        return f"{context.data.labeled_count} labels of the target domain"


def _labeled(context: RunContext) -> RunContext:
    return replace(context, data=context.data.target_domain(labeled=True))
