"""Exports a student whose head was made from texts, with the texts and the map for further classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distill.export.classes import MANIFEST, exported_class, write_classes
from distill.export.delta.io import read_delta
from distill.export.settings import DELTA
from distill.report.items import Files, Item
from distill.run.context import RunContext
from distill.run.stage import Ref
from distill.stages.embed_classes import EmbeddedClasses
from distill.stages.export import ExportedStudent, ExportStudent
from distill.stages.fit_text_head import TextHead
from distill.text.classes import fingerprints
from distill.text.settings import TextSettings


@dataclass(frozen=True, kw_only=True)
class ExportClasses(ExportStudent):
    """Exports the student, and ``classes.json`` beside its delta file.

    Args:
        text: settings of the texts.
        head: whose map is kept.
        texts: of the classes.
    """

    text: TextSettings
    head: Ref[TextHead]
    texts: Ref[EmbeddedClasses]

    def run(self, context: RunContext, folder: Path) -> ExportedStudent:
        made = super().run(context, folder)
        fitted, texts = context.get(self.head).map, context.get(self.texts)
        which = self.text.texts
        write_classes(
            folder,
            {**fitted.tensors(), "embeddings": texts.embeddings[which]},
            text=self.text.model_dump(mode="json"),
            encoder=fingerprints(self.text)[0],
            scale=fitted.scale,
            delta=read_delta(folder / DELTA)[0].sha256,
            classes=tuple(exported_class(each, self.text.formats, which) for each in texts.texts),
        )
        return made

    def report(self, context: RunContext, output: ExportedStudent) -> Iterable[Item]:
        yield from super().report(context, output)
        if (path := output.folder / MANIFEST).is_file():
            yield Files(paths={"classes": path})
