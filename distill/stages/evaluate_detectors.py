"""Detections of trained detectors on the test split: average precisions, and a picture of some images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from distill.data.base import Split
from distill.deltas.base import stored_bytes
from distill.detection.images import DetectionImages
from distill.detection.pictures import detections_sheet
from distill.detection.score import Detections, Precision, precision
from distill.files import write_atomic
from distill.report.items import Cell, Column, Headline, Item, Metric, Note, Picture, Table, TableRow
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.train_detector import TrainedDetector

TENSORS, SCORES, SHEET = "detections.safetensors", "scores.json", "detections.png"
SHOWN = 4
"""Images in the picture: those with the most objects."""


@dataclass(frozen=True)
class DetectorScores:
    """The results on one split.

    Args:
        split: of the data.
        detections: name of a detector → what it finds.
        scores: name of a detector → its average precisions.
        picture: of the subject's detections; None in a check.
    """

    split: Split
    detections: dict[str, Detections]
    scores: dict[str, Precision]
    picture: Path | None


@dataclass(frozen=True)
class EvaluateDetectors(Stage[DetectorScores]):
    """Evaluates detectors once, on the test split, or on the validation split if the source has no test split.

    Args:
        detectors: in the order of the table's rows; the last one is the subject of the run.
    """

    detectors: tuple[Ref[TrainedDetector], ...]

    def check(self, context: RunContext) -> DetectorScores | None:
        split = self._split(context)
        images = DetectionImages.of(context.data, split)
        if not sum(images.counts()):
            raise StageError(f"{self.name}: no image of {split} has an object, so there is nothing to score")
        made = [context.find(ref) for ref in self.detectors]
        if None in made:
            return None
        with trying(f"{self.name}: the detections in an image of {split}"):
            rows = images.few(1)
            detected = {own.name: own.built.detect(images, rows, context.device, 1) for own in made if own is not None}
        nothing = Precision(0.0, 0.0, 0.0, tuple(None for _ in images.categories))
        return DetectorScores(split, detected, dict.fromkeys(detected, nothing), None)

    def key(self, context: RunContext) -> Mapping[str, Any]:
        data = [context.data.fingerprint(), context.data.settings.model_dump(mode="json")]
        return {"data": data, "boxes": DetectionImages.of(context.data, self._split(context)).digest()}

    def run(self, context: RunContext, folder: Path) -> DetectorScores:
        split = self._split(context)
        images, batch = DetectionImages.of(context.data, split), context.data.settings.batch_size
        detections, scores = {}, {}
        for own in map(context.get, self.detectors):
            with context.waiting(f"detecting in the images of {split}"):
                detected = own.built.detect(images, range(len(images)), context.device, batch)
            detections[own.name], scores[own.name] = detected, precision(detected, images)
        if is_first_rank():
            tensors = {f"{name}/{key}": t for name, own in detections.items() for key, t in own.tensors().items()}
            write_atomic(folder / TENSORS, safetensors.torch.save(tensors))
            sheet = detections_sheet(images, detections[self.detectors[-1].stage], images.few(SHOWN))
            write_atomic(folder / SHEET, sheet)
            content = {"split": split, "scores": {name: asdict(own) for name, own in scores.items()}}
            write_atomic(folder / SCORES, json.dumps(content, indent=2).encode())
        return DetectorScores(split, detections, scores, folder / SHEET)

    def load(self, context: RunContext, folder: Path) -> DetectorScores:
        content = json.loads((folder / SCORES).read_text())
        tensors = safetensors.torch.load((folder / TENSORS).read_bytes())
        names = list(content["scores"])
        fields = ("boxes", "labels", "scores", "images")
        detections = {name: Detections(*(tensors[f"{name}/{field}"] for field in fields)) for name in names}
        scores = {name: _precision(own) for name, own in content["scores"].items()}
        return DetectorScores(content["split"], detections, scores, folder / SHEET)

    def report(self, context: RunContext, output: DetectorScores) -> Iterable[Item]:
        made = [own for ref in self.detectors if (own := context.find(ref)) is not None]
        if not made:
            return
        subject = output.scores[made[-1].name]
        yield Headline(value=subject.map50, unit="percent", what=f"mAP at IoU 0.5 on {output.split}")
        yield Headline(value=subject.map, unit="percent", what="mAP over IoU 0.5 to 0.95")
        if len(made) > 1:
            control = output.scores[made[0].name]
            yield Headline(value=subject.map50 - control.map50, unit="points", what=f"points against {made[0].name}")
        yield self._table(made, output)
        images = DetectionImages.of(context.data, output.split)
        yield _by_category(images, output)
        for own in made:
            for name in ("map", "map50", "map75"):
                value = getattr(output.scores[own.name], name)
                yield Metric(name=f"{output.split} {name} of {own.name}", value=value, seed=context.seed)
        if lacking := [name for name, count in zip(images.categories, images.counts()) if not count]:
            yield Note(text=f"{output.split} has no object of {', '.join(lacking)}: the means leave them out")
        if output.picture is not None:
            yield Picture(
                title="Detections",
                path=output.picture,
                alt="images with the boxes that are there and those that were found",
                caption=f"{SHOWN} images of {output.split}, those with the most objects; detector: {made[-1].name}",
            )

    def _table(self, made: list[TrainedDetector], output: DetectorScores) -> Table:
        rows = []
        for own in made:
            score, size = output.scores[own.name], _bytes(own)
            cells: tuple[Cell, ...] = (own.name, own.what, score.map50, score.map75, score.map, size, own.fit.seconds)
            rows.append(TableRow(cells=cells, strong=own is made[-1]))
        return Table(
            title=f"Detection on {output.split}",
            columns=(
                Column(heading="detector"),
                Column(heading="what", rank=4),
                Column(heading="mAP 50", unit="percent"),
                Column(heading="mAP 75", unit="percent", rank=2),
                Column(heading="mAP", unit="percent"),
                Column(heading="own size", unit="bytes", rank=3),
                Column(heading="training", unit="seconds", rank=1),
            ),
            rows=tuple(rows),
            caption="COCO's average precision in percent: at IoU 0.5, at 0.75, and the mean over 0.5 to 0.95. Own size:"
            " the tensors that are not those of the given backbone",
        )

    def _split(self, context: RunContext) -> Split:
        if context.data.has_split("test"):
            return "test"
        if context.data.has_split("val"):
            return "val"
        raise StageError(f"{self.name}: there is no test split, and no validation split to score instead")


def _by_category(images: DetectionImages, output: DetectorScores) -> Table:
    names = list(output.scores)
    columns = [Column(heading="category"), Column(heading="boxes", unit="count", rank=3)]
    columns += [Column(heading=f"{name}, AP 50", unit="percent", rank=0 if name == names[-1] else 1) for name in names]
    columns += [Column(heading=f"{name}, AP", unit="percent", rank=2) for name in names]
    rows = []
    for number, (category, count) in enumerate(zip(images.categories, images.counts())):
        own = [output.scores[name].by_category[number] for name in names]
        first = [None if each is None else each[1] for each in own]
        rest = [None if each is None else each[0] for each in own]
        rows.append(TableRow(cells=(category, float(count), *first, *rest)))
    return Table(title="By category", columns=tuple(columns), rows=tuple(rows))


def _precision(content: dict[str, Any]) -> Precision:
    of = [None if each is None else (each[0], each[1]) for each in content["by_category"]]
    return Precision(content["map"], content["map50"], content["map75"], tuple(of))


def _bytes(own: TrainedDetector) -> float:
    return float(stored_bytes(own.built.own_state()))
