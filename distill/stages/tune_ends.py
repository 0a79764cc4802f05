"""The user's part of offsite-tuning: deltas on the ends of an emulator; and the same on the full network, a control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from distill.run.context import RunContext
from distill.run.fit_spec import FitSpec
from distill.run.prepare import StudentSpec
from distill.run.stage import Ref
from distill.stages.make_emulator import Blocks, Emulator, emulator_folder, settings_of
from distill.stages.train_student import TrainStudent

TUNED, ON_SITE = "emulator, tuned", "on site"


@dataclass(frozen=True, kw_only=True)
class TuneEnds(TrainStudent):
    """Trains deltas on the ends of an emulator, and a head, from the emulator's folder alone.

    Args:
        emulator: as the owner gives it away.
    """

    emulator: Ref[Emulator]
    row: str = TUNED

    def _student_spec(self, context: RunContext, fit_spec: FitSpec, compiled: bool = True) -> StudentSpec:
        spec = super()._student_spec(context, fit_spec, compiled)
        settings = spec.settings.model_copy(
            update={"network": settings_of(emulator_folder(context, self.emulator), self.student.network)}
        )
        return replace(spec, settings=settings)


@dataclass(frozen=True, kw_only=True)
class TuneOnSite(TrainStudent):
    """Trains the same deltas on the ends of the full network, which only its owner could do.

    Args:
        blocks: which are the ends.
    """

    blocks: Blocks
    row: str = ON_SITE

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {**super().key(context), "blocks": vars(self.blocks)}

    def _student_spec(self, context: RunContext, fit_spec: FitSpec, compiled: bool = True) -> StudentSpec:
        spec = super()._student_spec(context, fit_spec, compiled)
        full = lambda: self.blocks.on_site(self.student.network)  # noqa: E731
        return replace(spec, network=full)
