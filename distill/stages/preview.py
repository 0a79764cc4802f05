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
from distill.run.preview import ViewBatch, draw_preview
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
    """Draws the views of the first batch, and each operation over its range.

    Args:
        augment: how the views of the student's training are made.
        student: the student and its teacher, for their input sizes.
    """

    augment: AugmentSettings
    student: Ref[TrainedStudent]

    first_rank: ClassVar[bool] = True

    def check(self, context: RunContext) -> DrawnViews | None:
        """Draw the pictures of two images."""
        if context.find(self.student) is None or context.trial is None:
            return None
        with trying(f"{self.name}: the pictures of the views"):
            return self._draw(context, context.trial.folder / self.name, images=2, draws=16)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"augment": self.augment.model_dump(mode="json"), "data": context.data.fingerprint()}

    def run(self, context: RunContext, folder: Path) -> DrawnViews:
        return self._draw(context, folder)

    def _draw(self, context: RunContext, folder: Path, images: int | None = None, draws: int = DRAWS) -> DrawnViews:
        """Draw the views of the first ``images`` of the first batch; None: of all, on which mixing depends."""
        trained = context.get(self.student)
        teachers = trained.teacher.inputs if trained.teacher else ()
        augment = DualAugment(self.augment, teachers, trained.student.input, context.seed)
        batch = context.data.train_batch(0, 0, images=images)
        preview = draw_preview(context.data, ViewBatch.of(augment, batch, 0), IMAGES, draws)
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
