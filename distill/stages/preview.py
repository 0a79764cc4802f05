"""Pictures of the views that each network gets in the first step of the student's training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from augment.dual import DualAugment
from augment.policy import AugmentSettings
from distill.files import write_atomic
from distill.report.items import Files, Item, Picture
from distill.run.context import RunContext
from distill.run.preview import ViewBatch, draw_preview, update_views
from distill.run.stage import Ref, Stage
from distill.run.trial import trying
from distill.stages.outputs import TrainedStudent

VIEWS, OPERATIONS, SHARED = "views.png", "views-operations.png", "shared.txt"
IMAGES = 8
DRAWS = 128
TITLE = "Views of each network"


@dataclass(frozen=True)
class DrawnViews:
    """Paths of the pictures, and a line about the overlap of the teacher's and the student's views."""

    views: Path
    operations: Path
    shared: str


@dataclass(frozen=True)
class PreviewViews(Stage[DrawnViews]):
    """Draws the views of the first update, and each operation over its range.

    Args:
        augment: how the views of the student's training are made.
        student: the student and its teacher, for their input sizes.
        accumulate: number of batches whose gradients an update averages.
        momentum: whether a momentum network sees the teacher's views at the student's size.
    """

    augment: AugmentSettings
    student: Ref[TrainedStudent]
    accumulate: int = 1
    momentum: bool = False

    first_rank: ClassVar[bool] = True

    def check(self, context: RunContext) -> DrawnViews | None:
        """Draw the pictures of two images."""
        if context.find(self.student) is None or context.trial is None:
            return None
        with trying(f"{self.name}: the pictures of the views"):
            return self._draw(context, context.trial.folder / self.name, images=2, draws=16)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        augment, data = self.augment.model_dump(mode="json"), context.data.fingerprint()
        return {"augment": augment, "data": data, "accumulate": self.accumulate}

    def run(self, context: RunContext, folder: Path) -> DrawnViews:
        return self._draw(context, folder)

    def _draw(self, context: RunContext, folder: Path, images: int | None = None, draws: int = DRAWS) -> DrawnViews:
        """Draw views of the first update; of the first ``images`` of its first batch in a check."""
        trained = context.get(self.student)
        teachers = [*(trained.teacher.inputs if trained.teacher else ()), *[trained.student.input] * self.momentum]
        augment = DualAugment(self.augment, teachers, trained.student.input, context.seed)
        numbers = range(min(self.accumulate, len(context.data.train_loader())))
        if images is None:
            view_batches = update_views(context.data, augment, 0, numbers, IMAGES)
        else:
            view_batches = [ViewBatch.of(augment, context.data.train_batch(0, 0, images=images), 0)]
        preview = draw_preview(context.data, view_batches, IMAGES, len(numbers), draws)
        preview.write(folder / VIEWS)
        write_atomic(folder / SHARED, preview.shared.encode())
        return self.load(context, folder)

    def load(self, context: RunContext, folder: Path) -> DrawnViews:
        return DrawnViews(folder / VIEWS, folder / OPERATIONS, (folder / SHARED).read_text())

    def report(self, context: RunContext, output: DrawnViews) -> Iterable[Item]:
        caption = f"Teacher and student: {output.shared}." if output.shared else ""
        alt = "Sample images, and the views that the teacher and the student get"
        yield Picture(title=TITLE, path=output.views, alt=alt, caption=caption)
        alt = "One strip of pictures per operation, from its weakest draw to its strongest"
        yield Picture(title=TITLE, path=output.operations, alt=alt, folded="Every operation over its range")
        yield Files(paths={"views": output.views, "operations": output.operations})
