"""Fits normal images, sets a threshold from held-out ones, and scores others: for student, backbone and teacher."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augment.chain import eval_view, to_unit
from distill.data.base import Split
from distill.data.experiment_data import ExperimentData
from distill.export.manifest import Preprocessing
from distill.files import write_atomic
from distill.models.features import Features
from distill.models.network import Network, extract
from distill.models.settings import NetworkSettings
from distill.report.items import Check, Column, Files, Headline, Item, Metric, Note, Picture, Table, TableRow
from distill.run.context import RunContext
from distill.run.folder import is_first_rank
from distill.run.stage import Ref, Stage, StageError
from distill.run.trial import trying
from distill.stages.evaluate import Evaluation
from distill.stages.outputs import TrainedStudent, pretrained_networks
from distill.stages.pooled_features import weights_of
from distill.transfer.anomaly.base import AnomalyMethod
from distill.transfer.anomaly.files import AnomalyDetector, load_anomaly, on_cpu, save_anomaly
from distill.transfer.anomaly.images import AnomalyImages
from distill.transfer.anomaly.pictures import COLUMNS, heat_sheet
from distill.transfer.anomaly.settings import AnomalySettings
from distill.transfer.anomaly.threshold import AnomalyScores, finite, least_rate, threshold

SCORES, SHEET = "scores.json", "heat.png"
CHECKED = 8
"""Images on which the detector that is read from its files must give the same scores."""
STUDENT = "student"


@dataclass(frozen=True)
class Anomalies(Evaluation):
    """The results of all detectors.

    Args:
        scores: (model, method) → what it does on the test images; None without any.
        limits: (model, method) → its threshold.
        sizes: (model, method) → bytes of its tensors.
        held_out: number of images that set the thresholds.
        checks: of the student's files.
        folder: of the stage.
    """

    scores: dict[tuple[str, str], AnomalyScores | None]
    limits: dict[tuple[str, str], float]
    sizes: dict[tuple[str, str], int]
    held_out: int
    checks: tuple[Check, ...]
    folder: Path


@dataclass(frozen=True)
class DetectAnomalies(Stage[Anomalies]):
    """Fits every method to every model; the student's detectors are written to files and read again.

    Args:
        settings: methods, normal classes, rate of false alarms, test images.
        student: after its training.
        networks: name → network of the other models.
    """

    settings: AnomalySettings
    student: Ref[TrainedStudent]
    networks: tuple[tuple[str, NetworkSettings], ...]

    def check(self, context: RunContext) -> None:
        """Find the images, and fit each method to a few outputs of the student."""
        images = AnomalyImages.of(context.data, self.settings)
        trained = context.find(self.student)
        if trained is None:
            return
        for method in self._methods():
            with trying(f"{self.name}: {method.settings.type}"):
                few = _outputs(context, trained.student.network, images.normal, "train", method, 16)
                outputs = list(few)
                state = method.fit(outputs, context.seed)
                scores, _ = method.score(outputs[0], state, trained.student.input.size)
            if not finite(scores):
                raise StageError(f"{self.name}: {method.settings.type} gives scores that are not finite")

    def key(self, context: RunContext) -> Mapping[str, Any]:
        images = AnomalyImages.of(context.data, self.settings)
        return {
            "settings": self.settings.model_dump(mode="json"),
            "networks": [
                [name, network.model_dump(mode="json"), weights_of(network, context.seed)]
                for name, network in self.networks
            ],
            "data": [context.data.settings.model_dump(mode="json"), images.normal.fingerprint()],
            "tested": images.tested.fingerprint() if images.tested is not None else None,
            "is_normal": np.packbits(images.is_normal).tobytes().hex(),
        }

    def run(self, context: RunContext, folder: Path) -> Anomalies:
        images = AnomalyImages.of(context.data, self.settings)
        scores, limits, sizes, checks = {}, {}, {}, []
        held_out = len(images.normal.subset("val"))
        for name, network in self._models(context):
            for method in self._methods():
                own = name, method.settings.type
                with context.waiting(f"{self.name}: {own[1]} of the {name}"):
                    fitted = _outputs(context, network, images.normal, "train", method)
                    state = method.fit(fitted, context.seed)
                    detector = AnomalyDetector(network.model, method, state, 0.0, network.input.size)
                    of_normal = _scored(context, detector, network, images.normal, "val")
                    detector.threshold = limits[own] = threshold(of_normal, self.settings.false_alarms)
                    sizes[own] = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
                    scores[own] = self._test(context, images, detector, network, folder, name == STUDENT)
                if name == STUDENT and is_first_rank():
                    about = {"normal_images": len(images.normal.subset("train")), "held_out": held_out}
                    checks.append(self._write(context, images, detector, network, folder, about))
        content = {
            "scores": [[*own, None if score is None else asdict(score)] for own, score in scores.items()],
            "limits": [[*own, value] for own, value in limits.items()],
            "sizes": [[*own, value] for own, value in sizes.items()],
            "held_out": held_out,
            "checks": [check.model_dump() for check in checks],
        }
        if is_first_rank():
            write_atomic(folder / SCORES, json.dumps(content, indent=2).encode())
        return self._result(context, scores, limits, sizes, held_out, tuple(checks), folder)

    def load(self, context: RunContext, folder: Path) -> Anomalies:
        content = json.loads((folder / SCORES).read_text())
        made = {(name, kind): own and AnomalyScores(**own) for name, kind, own in content["scores"]}
        limits, sizes = ({(name, kind): own for name, kind, own in content[key]} for key in ("limits", "sizes"))
        checks = tuple(Check.model_validate(check) for check in content["checks"])
        return self._result(context, made, limits, sizes, content["held_out"], checks, folder)

    def report(self, context: RunContext, output: Anomalies) -> Iterable[Item]:
        first = self._methods()[0].settings.type
        subject = output.scores[STUDENT, first]
        if subject is not None and subject.auroc is not None:
            yield Headline(value=subject.auroc, unit="percent", what=f"AUROC of the student's anomalies, {first}")
        rows = []
        for own, score in output.scores.items():
            measured = (None, None, None) if score is None else (score.auroc, score.detected, score.false_alarms)
            cells = (own[0], own[1], *measured, f"{output.limits[own]:.4g}", float(output.sizes[own]))
            rows.append(TableRow(cells=cells, strong=own[0] == STUDENT))
        yield Table(
            title="Anomalies",
            columns=(
                Column(heading="features"),
                Column(heading="method"),
                Column(heading="AUROC", unit="percent"),
                Column(heading="detected", unit="percent", rank=1),
                Column(heading="false alarms", unit="percent", rank=1),
                Column(heading="threshold", rank=3),
                Column(heading="size", unit="bytes", rank=2),
            ),
            rows=tuple(rows),
            caption=f"Thresholds from {output.held_out} held-out normal images for a rate of false alarms of"
            f" {self.settings.false_alarms:.1%}. AUROC in %; detected and false alarms: % of the anomalous and of the"
            " normal test images above the threshold.",
        )
        if least_rate(output.held_out) > self.settings.false_alarms:
            yield Note(
                text=f"{output.held_out} held-out normal images cannot tell a rate of false alarms of"
                f" {self.settings.false_alarms:.1%}: the threshold is the largest of their scores, for a rate of"
                f" {least_rate(output.held_out):.1%}"
            )
        yield from output.metrics
        yield from output.checks
        yield Files(paths={f"anomaly {kind}": output.folder / kind for name, kind in output.limits if name == STUDENT})
        if (output.folder / SHEET).is_file():
            yield Picture(
                title="Anomalies",
                path=output.folder / SHEET,
                alt="test images above maps of where they differ from normal ones",
                caption="The test images of the largest scores, and normal ones.",
            )

    def _result(self, context: RunContext, *parts: Any) -> Anomalies:
        scores: dict[tuple[str, str], AnomalyScores | None] = parts[0]
        metrics = [
            Metric(name=f"{measure} of {name}, {kind}", value=getattr(own, field), seed=context.seed)
            for (name, kind), own in scores.items()
            for measure, field in (("AUROC", "auroc"), ("detected", "detected"), ("false alarms", "false_alarms"))
            if own is not None and getattr(own, field) is not None
        ]
        return Anomalies("test", {}, (), tuple(metrics), *parts)

    def _test(
        self,
        context: RunContext,
        images: AnomalyImages,
        detector: AnomalyDetector,
        network: Network,
        folder: Path,
        drawn: bool,
    ) -> AnomalyScores | None:
        if images.tested is None:
            return None
        scores = _scored(context, detector, network, images.tested, "test")
        if drawn and is_first_rank() and not (folder / SHEET).exists():
            self._draw(context, images, detector, network, folder, scores)
        return AnomalyScores.of(scores, images.is_normal, detector.threshold)

    def _draw(
        self,
        context: RunContext,
        images: AnomalyImages,
        detector: AnomalyDetector,
        network: Network,
        folder: Path,
        scores: Tensor,
    ) -> None:
        """Draw the test images of the largest scores, and some normal ones, if the method has maps."""
        assert images.tested is not None
        ranked = scores.argsort(descending=True).tolist()
        normal = [row for row in ranked if images.is_normal[row]][: COLUMNS // 3]
        rows = [row for row in ranked if row not in normal][: 2 * COLUMNS - len(normal)] + normal
        batch = images.tested.eval_batch("test", rows, network.input)
        heat = detector(eval_view(batch.images, network.input))[1]
        if heat is not None:
            ids = images.tested.subset("test").ids
            titles = [(f"{images.kinds[row]}, {scores[row]:.3g}", ids[row]) for row in rows]
            pixels = to_unit(batch.images).mul(255).byte().movedim(1, -1)
            colors = pixels[..., :3] if pixels.shape[3] > 2 else pixels[..., :1].expand(-1, -1, -1, 3)
            sheet = heat_sheet(list(colors.numpy()), heat, titles, detector.threshold)
            write_atomic(folder / SHEET, sheet)

    def _write(
        self,
        context: RunContext,
        images: AnomalyImages,
        detector: AnomalyDetector,
        network: Network,
        folder: Path,
        about: dict[str, int],
    ) -> Check:
        """Write the student's detector, and compare what is read again with it."""
        kind = detector.method.settings.type
        own = folder / kind.replace(":", "-")
        prepared = Preprocessing.of(network.model, network.input.size)
        save_anomaly(own, detector, prepared, false_alarms=self.settings.false_alarms, **about)
        rows = list(range(min(CHECKED, about["held_out"])))
        batch = images.normal.eval_batch("val", rows, network.input)
        view = eval_view(batch.images, network.input)
        first = detector(view)[0]
        second = load_anomaly(own, network.model, allow_plugins=True)(view)[0]
        detail = f"equal scores of {len(rows)} images" if torch.equal(first, second) else "other scores"
        return Check(name=f"{kind} from its files", passed=torch.equal(first, second), detail=detail, of="anomaly")

    def _methods(self) -> list[AnomalyMethod]:
        made = []
        for settings in self.settings.methods:
            method = settings.component
            assert method is not None and issubclass(method, AnomalyMethod)
            made.append(method(settings))
        return made

    def _models(self, context: RunContext) -> Iterator[tuple[str, Network]]:
        for name, settings in self.networks:
            yield name, pretrained_networks([settings], context.seed)[0]
        yield STUDENT, context.get(self.student).student.network


def _outputs(
    context: RunContext,
    network: Network,
    data: ExperimentData,
    split: Split,
    method: AnomalyMethod,
    few: int | None = None,
) -> Iterator[Features]:
    """The outputs of a network for the images of a split, in order; of a few with ``few``."""
    if few is not None:
        count = len(data.subset(split))
        batches: Any = [data.eval_batch(split, list(range(min(few, count))), network.input)]
    else:
        batches = data.eval_loader(split, False, network.input)
    model = network.model.to(context.device).eval()
    for batch in batches:
        view = eval_view(batch.images.to(context.device), network.input)
        with torch.no_grad():
            output = on_cpu(extract(model, view, method.needs))
        yield output
    model.to("cpu")


def _scored(
    context: RunContext, detector: AnomalyDetector, network: Network, data: ExperimentData, split: Split
) -> Tensor:
    """Scores [N] of the images of a split, in its order."""
    outputs = _outputs(context, network, data, split, detector.method)
    return torch.cat([detector.method.score(output, detector.state, detector.size)[0] for output in outputs])
