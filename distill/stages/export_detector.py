"""Exports the trained detector, loads the files again, and compares what both find."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from distill.detection.detectors.base import Detector
from distill.detection.files import load_detector, save_detector
from distill.detection.images import DetectionImages, evaluation_item
from distill.detection.settings import DetectorBackboneSettings
from distill.export.manifest import Result
from distill.files import write_atomic
from distill.report.items import Check, Files, Item, Sizes
from distill.run.context import RunContext
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.evaluate_detectors import DetectorScores
from distill.stages.train_detector import TrainedDetector

CHECKS, FOLDER = "checks.json", "detector"
IMAGES = 8
"""Images in which the loaded detector must find what the trained one finds."""


@dataclass(frozen=True)
class ExportedDetector:
    """The folder, and the results of the verification."""

    folder: Path
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class ExportDetector(Stage[ExportedDetector]):
    """Writes ``export/detector``, see :mod:`distill.detection.files`, and verifies it.

    Args:
        backbone: settings of the detector's backbone.
        detector: settings of the detector.
        trained: the detector.
        scores: its measured numbers, which the files contain.
    """

    backbone: DetectorBackboneSettings
    detector: Detector.Settings
    trained: Ref[TrainedDetector]
    scores: Ref[DetectorScores]

    first_rank: ClassVar[bool] = True

    def check(self, context: RunContext) -> ExportedDetector | None:
        """Export the untrained detector and load it; deltas that are not trained cannot be exported yet."""
        own = context.find(self.trained)
        if own is None or context.trial is None or self.backbone.way == "deltas":
            return None
        with trying(f"{self.name}: the export of the untrained detector"):
            exported = self._export(context, own, context.trial.folder / self.name, (), 1)
        if failed := [check.detail for check in exported.checks if not check.passed]:
            raise StageError(f"{self.name}: the export of the untrained detector finds something else: {failed[0]}")
        return exported

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {"images": IMAGES}

    def run(self, context: RunContext, folder: Path) -> ExportedDetector:
        scores = context.get(self.scores)
        own = context.get(self.trained)
        results = [
            Result(name=f"{scores.split}/{name}", value=getattr(scores.scores[own.name], name), seed=context.seed)
            for name in ("map", "map50", "map75")
        ]
        exported = self._export(context, own, folder / FOLDER, results, IMAGES)
        write_atomic(folder / CHECKS, json.dumps([check.model_dump() for check in exported.checks], indent=2).encode())
        return exported

    def load(self, context: RunContext, folder: Path) -> ExportedDetector:
        checks = [Check.model_validate(each) for each in json.loads((folder / CHECKS).read_text())]
        return ExportedDetector(folder / FOLDER, tuple(checks))

    def report(self, context: RunContext, output: ExportedDetector) -> Iterable[Item]:
        files = {path.relative_to(output.folder): path.stat().st_size for path in output.folder.rglob("*.safetensors")}
        yield Sizes(
            bytes={str(name.parent) if len(name.parts) > 1 else "detector": size for name, size in files.items()}
        )
        yield Files(paths={"detector": output.folder})
        yield from output.checks

    def _export(
        self, context: RunContext, own: TrainedDetector, folder: Path, results: Any, count: int
    ) -> ExportedDetector:
        save_detector(folder, own.built, self.detector, self.backbone, own.network, results)
        split = context.get(self.scores).split
        images = DetectionImages.of(context.data, split)
        loaded = load_detector(folder, allow_plugins=True).to(context.device)
        module = own.built.module.to(context.device).eval()
        different = []
        rows = images.few(count)
        with torch.no_grad():
            for row in rows:
                image = [evaluation_item(images, row).to(context.device)]
                first, second = module(image)[0], loaded(image)[0]
                if any(not torch.equal(first[key], second[key]) for key in ("boxes", "labels", "scores")):
                    different.append(images.subset.ids[row])
        detail = f"equal boxes in {len(rows)} images" if not different else f"other boxes in {', '.join(different)}"
        return ExportedDetector(folder, (Check(name="detector from its files", passed=not different, detail=detail),))
