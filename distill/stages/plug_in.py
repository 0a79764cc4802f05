"""The owner's last part of offsite-tuning: the user's delta file on the full network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.export.delta.io import save_delta
from distill.models.settings import StudentSettings
from distill.report.items import Column, Files, Item, Table, TableRow
from distill.run.context import RunContext
from distill.run.export import preprocessing
from distill.run.folder import is_first_rank
from distill.run.prepare import StudentSpec
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.make_emulator import Emulator, emulator_folder
from distill.stages.outputs import TrainedStudent
from distill.transfer.offsite import plugged_student

PLUGGED = "plugged in"
SENT = "delta"
"""Folder of the user's delta file, in that of the stage."""


@dataclass(frozen=True)
class PluggedStudent(TrainedStudent):
    """The full network with the user's deltas on its ends, and the user's head."""

    sent: int
    """Bytes of the user's delta file: of its tensors, and of ``delta.json``, which is not small."""
    received: int
    """Bytes of the files in the emulator's folder."""


@dataclass(frozen=True)
class PlugIn(Stage[PluggedStudent]):
    """Writes the delta file of the tuned emulator, and attaches it to the full network, whose ends it checks.

    Args:
        settings: of the student on the full network.
        emulator: that was tuned.
        tuned: the student on it.
    """

    settings: StudentSettings
    emulator: Ref[Emulator]
    tuned: Ref[TrainedStudent]

    def check(self, context: RunContext) -> PluggedStudent | None:
        """Plug in the untrained student."""
        tuned = context.find(self.tuned)
        if tuned is None or context.trial is None:
            return None
        with trying(f"{self.name}: the delta file of the untrained emulator"):
            return self._plugged(context, tuned, context.trial.folder / self.name, write=True, unchanged=True)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"student": self.settings.model_dump(mode="json")}

    def run(self, context: RunContext, folder: Path) -> PluggedStudent:
        return self._plugged(context, context.get(self.tuned), folder, write=True)

    def load(self, context: RunContext, folder: Path) -> PluggedStudent:
        return self._plugged(context, context.get(self.tuned), folder, write=False)

    def report(self, context: RunContext, output: PluggedStudent) -> Iterable[Item]:
        columns = Column(heading="file"), Column(heading="way"), Column(heading="size", unit="bytes")
        rows = [("emulator", "owner → user", output.received), ("delta file", "user → owner", output.sent)]
        yield Table(title="What is sent", columns=columns, rows=tuple(TableRow(cells=row) for row in rows))
        yield Files(paths={"delta of the emulator": output.folder / SENT})

    def _plugged(
        self, context: RunContext, tuned: TrainedStudent, folder: Path, write: bool, unchanged: bool = False
    ) -> PluggedStudent:
        student = tuned.student
        if write and is_first_rank():
            save_delta(
                folder / SENT,
                student.model,
                student.backbone,
                origin=student.network.origin,
                labels=tuple(context.data.classes),
                preprocessing=preprocessing(context, student),
                unchanged=unchanged,
            )
        if write:
            context.wait_for_ranks()
        full, manifest = plugged_student(folder / SENT, self.settings.network, student.needs, allow_plugins=True)
        sent, received = _bytes(folder / SENT), _bytes(emulator_folder(context, self.emulator))
        spec = StudentSpec(self.settings, context.seed, manifest.num_classes, student.needs, manifest.head)
        what = "the full network with the ends tuned on the emulator"
        return PluggedStudent(PLUGGED, what, full, tuned.teacher, spec, tuned.fit, folder, sent, received)


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
