"""Exports the network of a stream without labels as features: no classifier was trained."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from distill.continual.learned import LearnedTask, folder_bytes
from distill.continual.task import EVALUATED
from distill.deltas.attach import merge
from distill.deltas.base import DeltaError
from distill.export.manifest import Preprocessing
from distill.export.targets.timm_folder import write_timm_folder
from distill.export.verify import TOLERANCE
from distill.files import write_atomic
from distill.models.network import Network, create_network, extract
from distill.models.settings import NetworkSettings
from distill.models.timm_models import new_classifier
from distill.report.items import Check, Files, Item, Note, Sizes
from distill.run.context import RunContext
from distill.run.export import verification_images
from distill.run.stage import Ref, Stage

FEATURES, WRITTEN = "features", "written.json"
IMAGES = 64
"""Real images on which the files must give the features of the run's network."""


@dataclass(frozen=True)
class ExportedFeatures:
    """A timm folder without a classifier; no folder if it cannot be written, for a reason."""

    folder: Path | None
    checks: tuple[Check, ...] = ()
    refused: str = ""


@dataclass(frozen=True)
class ExportFeatures(Stage[ExportedFeatures]):
    """Writes the network after the last task into ``export/features``: a timm folder with ``num_classes`` 0.

    Its output is the pooled features [N, D], whatever classifier is put on them. The file is read again, and must give
    the features of the run's network.

    Args:
        learned: the learner after the last task, which has one network.
    """

    learned: Ref[LearnedTask]

    first_rank: ClassVar[bool] = True

    def key(self, context: RunContext) -> Mapping[str, Any]:
        return {}

    def run(self, context: RunContext, folder: Path) -> ExportedFeatures:
        output = self._export(context, folder / FEATURES)
        about = {"checks": [check.model_dump() for check in output.checks], "refused": output.refused}
        write_atomic(folder / WRITTEN, json.dumps(about, indent=2).encode())
        return output

    def load(self, context: RunContext, folder: Path) -> ExportedFeatures:
        about = json.loads((folder / WRITTEN).read_text())
        checks = tuple(Check.model_validate(check) for check in about["checks"])
        return ExportedFeatures(None if about["refused"] else folder / FEATURES, checks, about["refused"])

    def report(self, context: RunContext, output: ExportedFeatures) -> Iterable[Item]:
        if output.folder is None:
            yield Note(text=output.refused)
            return
        yield Note(
            text="no objective trains a classifier, so the export has none: its output is the pooled features (timm "
            "folder with num_classes 0)"
        )
        yield Sizes(bytes={"exported features": folder_bytes(output.folder)})
        yield Files(paths={"features": output.folder})
        yield from output.checks

    def _export(self, context: RunContext, folder: Path) -> ExportedFeatures:
        part = context.get(self.learned).newest
        network = part.load()
        model = copy.deepcopy(network.model)
        try:
            merge(model)
        except DeltaError as error:
            text = f"no exported features: {error}; the network with its delta is in {part.folder}"
            return ExportedFeatures(None, refused=text)
        new_classifier(model, 0)
        preprocessing = Preprocessing.of(model, network.input.size)
        write_timm_folder(folder, model, origin=network.origin, preprocessing=preprocessing)
        return ExportedFeatures(folder, (self._check(context, folder, network),))

    def _check(self, context: RunContext, folder: Path, live: Network) -> Check:
        read = create_network(NetworkSettings(model=f"local-dir:{folder.resolve()}", size=live.input.size[0]))
        images = verification_images(context, live.input, IMAGES, EVALUATED)[:IMAGES]
        with torch.inference_mode():
            expected = extract(live.model.eval(), images, frozenset({"pooled"})).pooled
            features = read.model.eval()(images)
        assert expected is not None
        same = features.shape == expected.shape
        difference = float((features - expected).abs().max() / expected.abs().max()) if same else float("inf")
        detail = f"{len(images)} images, relative difference {difference:.1e}"
        return Check(name="exported features = network of the run", passed=difference <= TOLERANCE, detail=detail)
